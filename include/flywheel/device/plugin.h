/* The interface that a vendor implements: one table of C functions, in a plug-in (a shared library) or linked in.
 *
 * A device multiplies quantized matrices. flywheel's core does the rest: it cuts the graph, rounds activations, keeps
 * compiled programs on disk, falls back to the CPU, and hides all of this from products.
 *
 * docs/device-guide.md takes an engineer through it; `flywheel-device-conformance PLUGIN` checks a device against it.
 *
 * Conventions. Sizes are bytes, times seconds unless a name says otherwise. Structs that may grow begin with their size:
 * the side that fills one writes no further than `size`, the side that reads one takes what lies beyond as zero. Functions return a
 * flywheel_status; they neither throw nor exit. All of them may be called from several threads at once, except that one
 * buffer is mapped and unmapped by one thread at a time. Plain C99. */
#ifndef FLYWHEEL_DEVICE_PLUGIN_H
#define FLYWHEEL_DEVICE_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a device built for the old header could misunderstand the new one. */
#define FLYWHEEL_DEVICE_ABI 1u

typedef int32_t flywheel_status;
enum {
  FLYWHEEL_OK = 0,
  FLYWHEEL_UNSUPPORTED = 1,      /* The device cannot do this; the core does it elsewhere. */
  FLYWHEEL_INVALID_ARGUMENT = 2, /* The caller broke this interface. */
  FLYWHEEL_OUT_OF_MEMORY = 3,    /* Of the device's memory. */
  FLYWHEEL_TIMEOUT = 4,          /* wait(): not finished yet; may be waited for again. */
  FLYWHEEL_DEVICE_LOST = 5,      /* Nothing works any more; buffers and executables are still released. */
  FLYWHEEL_INCOMPATIBLE = 6,     /* load(): a blob of another device, driver or compiler: compile again. */
  FLYWHEEL_CORRUPT = 7,          /* load(): this is no blob, or a damaged one: compile again. */
  FLYWHEEL_FAILED = 8            /* This one submission or call failed; the device goes on. */
};

/* Weights of a product, symmetric: weight = code * scale of its group. `group` consecutive elements of a row (of K)
 * share a scale; 0: the whole row (an output channel). */
typedef struct flywheel_weight_format {
  int32_t bits; /* 8: codes -127..127; 4: codes -8..7 */
  int32_t group;
} flywheel_weight_format;

#define FLYWHEEL_MAX_WEIGHT_FORMATS 8

typedef struct flywheel_device_caps {
  uint32_t size; /* set by the caller */
  uint32_t abi;  /* FLYWHEEL_DEVICE_ABI the device was built with */
  char name[64]; /* as in `-d NAME`: letters, digits, '-', '_' */
  char vendor[64];
  char arch[64];
  char driver[64];
  uint32_t tile_m, tile_n, tile_k; /* of the matrix unit; what does not fill a tile is padded by the device */
  uint32_t alignment;              /* of buffers and of offsets into them; a power of two, at most 4096 */
  uint64_t scratch_bytes;          /* on-chip memory a program may plan with */
  uint64_t memory_bytes;           /* for buffers; 0: the host's */
  uint64_t max_buffer_bytes;       /* 0: no limit of its own */
  uint32_t queues;                 /* that work side by side */
  uint32_t max_in_flight;          /* submissions at a time, at least 1: from submit() until wait() has answered something
                                    * other than FLYWHEEL_TIMEOUT; the core has no more */
  uint32_t static_shapes;          /* 1: programs are compiled for one number of rows */
  uint32_t unified_memory;         /* 1: import_host works */
  double multiply_adds_per_second; /* peak with 8-bit weights, for plans; 0: unknown */
  double bytes_per_second;         /* between memory and the matrix unit; 0: unknown */
  double launch_seconds;           /* fixed cost of a submission */
  uint32_t n_weight_formats;
  flywheel_weight_format weight_formats[FLYWHEEL_MAX_WEIGHT_FORMATS];
} flywheel_device_caps;

enum { FLYWHEEL_OP_MATMUL = 1 };

/* y [rows, n] f32 = x [rows, k] * w [n, k] transposed. With group G (k if weights.group is 0, the last group may be
 * shorter) and groups = ceil(k / G), x is given as codes int8 [rows, k] in -127..127 and scales f32 [rows, groups]:
 *
 *   y[r][c] = sum over g, ascending, of
 *             (float(sum over i in group g of x_code[r][i] * w_code[c][i]) * w_scale[c][g]) * x_scale[r][g]
 *
 * The inner sum is exact in int32 (k is at most 131071); every other operation rounds once to f32, to nearest even;
 * the outer sum begins with the term of group 0. NaN scales give NaN. That leaves no freedom: two devices that
 * implement it agree bit for bit. */
typedef struct flywheel_matmul {
  uint32_t size;
  int32_t kind; /* FLYWHEEL_OP_MATMUL; a device answers FLYWHEEL_UNSUPPORTED to others */
  int64_t rows; /* 0 in a query: any number */
  int64_t n, k;
  flywheel_weight_format weights;
  uint32_t input; /* which of the part's inputs x is; all ops of one input have the same rows, k and group */
} flywheel_matmul;

/* A device's answer about an operation. */
typedef struct flywheel_support {
  uint32_t size;
  uint32_t ok;
  char reason[160];       /* for people: why not, with the numbers that decide it */
  uint64_t scratch_bytes; /* on-chip memory it would use */
  double seconds;         /* expected, at `rows` (1 if 0), launch included; 0: unknown */
} flywheel_support;

/* What is compiled as one program: products that do not depend on each other. Op i multiplies inputs[ops[i].input] with
 * weights i into output i. */
typedef struct flywheel_part {
  uint32_t size;
  uint32_t n_ops;
  const flywheel_matmul* ops;
  uint32_t n_inputs;
} flywheel_part;

typedef struct flywheel_device flywheel_device;         /* the implementer's */
typedef struct flywheel_buffer flywheel_buffer;         /* the implementer's */
typedef struct flywheel_executable flywheel_executable; /* the implementer's */
typedef uint64_t flywheel_fence;                        /* 0: none */

/* A place in a buffer; `offset` is a multiple of caps.alignment. */
typedef struct flywheel_region {
  flywheel_buffer* buffer;
  uint64_t offset;
} flywheel_region;

typedef struct flywheel_input {
  flywheel_region codes;  /* int8 [rows, k] */
  flywheel_region scales; /* f32 [rows, groups] */
} flywheel_input;

typedef struct flywheel_bindings {
  uint32_t size;
  uint32_t n_inputs, n_ops;
  const flywheel_input* inputs;   /* [n_inputs] */
  const flywheel_region* weights; /* [n_ops]: what pack() made */
  const flywheel_region* outputs; /* [n_ops]: f32 [rows, n] */
} flywheel_bindings;

/* What a mapping is for: one of them or both. Without FLYWHEEL_MAP_READ the host writes whatever matters, and the bytes it
 * does not write are undefined afterwards; without FLYWHEEL_MAP_WRITE it writes nothing. So a device with memory of its
 * own copies in one direction only. */
enum { FLYWHEEL_MAP_READ = 1, FLYWHEEL_MAP_WRITE = 2 };

/* Takes the bytes of a blob; called any number of times by compile(), in order. */
typedef struct flywheel_sink {
  void* context;
  flywheel_status (*write)(void* context, const void* data, uint64_t bytes);
} flywheel_sink;

/* The functions. Those marked (optional) may be null. */
typedef struct flywheel_device_table {
  uint32_t size;         /* set by the caller: room for the table; the device writes no further */
  flywheel_device* self; /* first argument of every function */

  /* Ends the device. All its buffers and executables have been released. */
  void (*close)(flywheel_device*);

  flywheel_status (*caps)(flywheel_device*, flywheel_device_caps* out);
  /* Identifies architecture, driver and compiler: a blob may be loaded where the fingerprints are equal. Zero-ended. */
  flywheel_status (*fingerprint)(flywheel_device*, char* out, uint32_t room);

  /* Whether it computes the operation, and what that takes. Pure: allocates nothing on the device. */
  flywheel_status (*query)(flywheel_device*, const flywheel_matmul* op, flywheel_support* out);

  /* The device's own layout of weights [n, k] in memory. `codes`: int8 [n, k], one per byte whatever the bits; `scales`:
   * f32 [n, groups]. pack() writes exactly packed_size() bytes; unpack() is its inverse. Pure. Of `op`, rows and input
   * mean nothing here: one packing serves every number of rows. */
  flywheel_status (*packed_size)(flywheel_device*, const flywheel_matmul* op, uint64_t* out);
  flywheel_status (*pack)(flywheel_device*, const flywheel_matmul* op, const int8_t* codes, const float* scales,
                          void* out);
  flywheel_status (*unpack)(flywheel_device*, const flywheel_matmul* op, const void* packed, int8_t* codes,
                            float* scales);

  /* A program for these operations and their numbers of rows, as bytes that load() takes, on this machine or another
   * with the same fingerprint. May take long. Does not touch the device. */
  flywheel_status (*compile)(flywheel_device*, const flywheel_part* part, const flywheel_sink* blob);
  /* FLYWHEEL_INCOMPATIBLE or FLYWHEEL_CORRUPT for blobs it should not run: blobs come from disk. */
  flywheel_status (*load)(flywheel_device*, const void* blob, uint64_t bytes, flywheel_executable** out);
  /* When it returns, the device no longer uses the program: a submission of it that has not ended fails. */
  void (*unload)(flywheel_device*, flywheel_executable*);

  /* Memory. A buffer belongs to the device except between map() and unmap(), when it belongs to the host, which reads
   * and writes it through the address that map() gives. Its contents survive both, as far as the access allows. When release() returns, the device
   * no longer touches the memory: a submission that has not ended fails. */
  flywheel_status (*alloc)(flywheel_device*, uint64_t bytes, flywheel_buffer** out);
  /* (optional) The host's own memory as a buffer, without a copy; `memory` is aligned to caps.alignment and stays
   * valid until release(). map() gives the same address. */
  flywheel_status (*import_host)(flywheel_device*, void* memory, uint64_t bytes, flywheel_buffer** out);
  flywheel_status (*map)(flywheel_device*, flywheel_buffer*, uint32_t access, void** out);
  flywheel_status (*unmap)(flywheel_device*, flywheel_buffer*);
  void (*release)(flywheel_device*, flywheel_buffer*);

  /* Runs a program once all of `waits` are signalled; returns at once, with a fence (not 0) for its end. Submissions may
   * overtake each other unless fences order them; fences of `waits` that are 0 or gone count as signalled, and so does
   * one whose submission failed. Buffers are unmapped and stay until then. Neither compiles nor
   * allocates. FLYWHEEL_FAILED: it was not accepted, and there is no fence. */
  flywheel_status (*submit)(flywheel_device*, flywheel_executable*, const flywheel_bindings*, const flywheel_fence* waits,
                            uint32_t n_waits, flywheel_fence* out);
  /* Until the submission has ended or `nanoseconds` have passed. Each fence is waited for until something other than
   * FLYWHEEL_TIMEOUT is returned, and is gone then; or never again, once what its submission uses was released. FLYWHEEL_FAILED: its outputs are not to be used. */
  flywheel_status (*wait)(flywheel_device*, flywheel_fence, uint64_t nanoseconds);

  /* (optional) What the last failure on this thread was, for people. Zero-ended. */
  void (*last_error)(flywheel_device*, char* out, uint32_t room);
} flywheel_device_table;

/* The devices of a plug-in. */
typedef struct flywheel_device_factory {
  uint32_t size;
  uint32_t count;
  const char* (*name)(uint32_t index); /* as caps.name; valid as long as the plug-in */
  /* `options`: "key=value,key=value" of the implementer's own, or null. Unknown keys: FLYWHEEL_INVALID_ARGUMENT. */
  flywheel_status (*open)(uint32_t index, const char* options, flywheel_device_table* out);
} flywheel_device_factory;

/* The one symbol a plug-in exports. FLYWHEEL_INCOMPATIBLE if it does not know this `abi`. */
flywheel_status flywheel_device_open(uint32_t abi, flywheel_device_factory* out);

#ifdef __cplusplus
}
#endif
#endif
