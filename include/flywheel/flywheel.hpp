// The whole stable API. Each line says what a header is for; include single ones to compile faster.
#pragma once

#include "flywheel/adapt/adapters.hpp"         // adapters into weights, out of them, combined
#include "flywheel/adapt/evolve.hpp"           // search for the numbers of a recipe
#include "flywheel/adapt/experts.hpp"          // mixtures of experts from dense models
#include "flywheel/adapt/lineage.hpp"          // who a model's parents are
#include "flywheel/adapt/merge_models.hpp"     // merge models
#include "flywheel/adapt/recipe.hpp"           // recipes of merges
#include "flywheel/core/buffer.hpp"            // aligned memory
#include "flywheel/core/context.hpp"           // threads, memory, log sink, instruction set: what models share
#include "flywheel/core/dtype.hpp"             // element types
#include "flywheel/core/executor.hpp"          // where parallel work runs
#include "flywheel/core/isa.hpp"               // which instruction sets are there and used
#include "flywheel/core/mapped_file.hpp"       // files mapped read-only
#include "flywheel/core/progress.hpp"          // progress and cancellation
#include "flywheel/core/result.hpp"            // result<T>, error
#include "flywheel/core/tensor.hpp"            // shapes, views, tensors
#include "flywheel/device/observer.hpp"        // see what goes into a model's weights
#include "flywheel/evaluate/compare.hpp"       // how far a model is from another
#include "flywheel/io/archive.hpp"             // read GGUF and safetensors
#include "flywheel/io/writer.hpp"              // write them
#include "flywheel/model/adapter.hpp"          // low-rank adapters on a loaded model
#include "flywheel/model/adapter_archive.hpp"  // adapter files and PEFT folders by path
#include "flywheel/model/batch.hpp"            // several sequences computed together
#include "flywheel/model/convert.hpp"          // write a model as GGUF, in another type
#include "flywheel/model/model.hpp"            // open a model
#include "flywheel/model/open.hpp"             // model files and Hugging Face folders by path
#include "flywheel/model/plan.hpp"             // which device computes what of a model
#include "flywheel/model/sampler.hpp"          // choose tokens
#include "flywheel/model/session.hpp"          // prefill, generate, score, save
#include "flywheel/quant/importance.hpp"       // importance matrices
#include "flywheel/quant/quantize_model.hpp"   // a model in smaller types
#include "flywheel/text/tokenizer.hpp"         // text to ids and back
#include "flywheel/version.hpp"                // version numbers
