// Every merge method: what is included here has its line in src/adapt/merge/methods.inc.
#pragma once

#include "flywheel/adapt/merge/arcee_fusion.hpp"
#include "flywheel/adapt/merge/breadcrumbs.hpp"
#include "flywheel/adapt/merge/dare.hpp"
#include "flywheel/adapt/merge/della.hpp"
#include "flywheel/adapt/merge/karcher.hpp"
#include "flywheel/adapt/merge/linear.hpp"
#include "flywheel/adapt/merge/model_stock.hpp"
#include "flywheel/adapt/merge/multislerp.hpp"
#include "flywheel/adapt/merge/nearswap.hpp"
#include "flywheel/adapt/merge/nuslerp.hpp"
#include "flywheel/adapt/merge/passthrough.hpp"
#include "flywheel/adapt/merge/sce.hpp"
#include "flywheel/adapt/merge/slerp.hpp"
#include "flywheel/adapt/merge/task_arithmetic.hpp"
#include "flywheel/adapt/merge/ties.hpp"
