#include "src/device/simulator/profile.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

constexpr std::uint64_t kib = 1024, mib = kib * kib, gib = kib * mib;

constexpr flywheel_weight_format hexagon_formats[] = {{8, 0}, {4, 128}, {4, 0}};
constexpr flywheel_weight_format xdna_formats[] = {{4, 128}, {8, 0}, {8, 128}};

// Figures are typical of their kind, rounded from what vendors and open-source drivers say in public; they are no
// measurement of any chip.
constexpr profile all[] = {
    {
        // After the NPUs of phones that Qualcomm calls Hexagon: the open-source kernels for its matrix extension work
        // on 32 x 32 tiles in 8 MiB of tightly coupled memory and share the phone's LPDDR5X with the CPU.
        .name = "hexagon-sim",
        .vendor = "flywheel (simulated)",
        .arch = "hexagon-like",
        .driver = "simulator 1",
        .order = tile_order::quads,
        .tile_m = 32,
        .tile_n = 32,
        .tile_k = 32,
        .columns = 1,
        .multiply_adds_per_cycle = 16384,  // 16 T/s: recent phones are sold with 30 to 45 TOPS
        .fill_cycles = 8,                  // 1 KiB at one 1024-bit vector per cycle
        .scale_lanes = 128,                // four vector units of 32 lanes
        .dma_setup_cycles = 300,
        .dma_bytes_per_cycle = 64,  // 64 GB/s: four 16-bit LPDDR5X channels offer 60 to 80
        .clock_hz = 1.0e9,
        .launch_seconds = 60e-6,  // a remote procedure call to the DSP takes tens of microseconds
        .scratch_bytes = 8 * mib,
        .memory_bytes = 0,
        .max_buffer_bytes = 2 * gib,  // 32-bit addresses
        .alignment = 128,             // a vector
        .queues = 1,
        .max_in_flight = 16,
        .unified_memory = true,
        .formats = hexagon_formats,
    },
    {
        // After the NPUs of AMD's laptop chips (XDNA): columns of four AI engines with a memory tile of 512 KiB each; a
        // context gets a partition of four columns, and two contexts run side by side. The memory of real ones is the
        // host's, too, behind an IOMMU; this profile is the one with an address space of its own.
        .name = "xdna-sim",
        .vendor = "flywheel (simulated)",
        .arch = "xdna-like",
        .driver = "simulator 1",
        .order = tile_order::columns,
        .tile_m = 8,
        .tile_n = 8,
        .tile_k = 8,
        .columns = 4,
        .multiply_adds_per_cycle = 4096,  // 16 engines x 256 int8 multiply-adds
        .fill_cycles = 2,                 // 256 bytes over 16 pairs of 32-bit streams
        .scale_lanes = 256,               // 16 engines x 16 lanes
        .dma_setup_cycles = 200,
        .dma_bytes_per_cycle = 32,  // 42 GB/s: half of what two channels of DDR5 offer
        .clock_hz = 1.3e9,
        .launch_seconds = 80e-6,  // a command through the kernel driver takes tens of microseconds
        .scratch_bytes = 2 * mib,
        .memory_bytes = 16 * gib,
        .max_buffer_bytes = 4 * gib,
        .alignment = 64,
        .queues = 2,
        .max_in_flight = 32,
        .unified_memory = false,
        .formats = xdna_formats,
    },
};

}  // namespace

std::span<const profile> profiles() noexcept { return all; }

}  // namespace flywheel::inline v0::device::simulation
