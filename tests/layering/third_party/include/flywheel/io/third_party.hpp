#include <nlohmann/json.hpp>  // what a public header must not do
