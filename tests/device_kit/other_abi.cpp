// A plug-in of a later flywheel: it does not know this one's ABI.
#include "flywheel/device/plugin.h"

extern "C" flywheel_status flywheel_device_open(uint32_t, flywheel_device_factory*) { return FLYWHEEL_INCOMPATIBLE; }
