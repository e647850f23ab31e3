// Causal attention over a paged KV cache, without the full score matrix (online softmax: Milakov & Gimelshein 2018, Dao
// et al. 2022):  out[t, h] = sum_p softmax_p(scale * q[t, h] . k[p, h / group]) v[p, h / group],  p visible to t.
//
// A token's result depends on its own query and the cached positions alone, summed in order of position in blocks that
// start at page boundaries: not on which other tokens are in the call, nor on threads.
//
// With quantized keys and values, queries are quantized too: in blocks of 32, round(q 127 / max|q|) times max|q| / 127
// (quantize_block32 of kernels/matmul/reference.hpp), which is what integer dot products take. Keys, values and queries
// are rotated before that, and results back (rotation.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"
#include "kernels/attention/page.hpp"

namespace flywheel::inline v0::kernels {

struct store_kv_args {
  const float* k = nullptr;              ///< [n_tokens, n_kv_heads, head_dim], rotated
  std::int64_t k_stride = 0;             ///< Floats between tokens.
  const float* v = nullptr;              ///< [n_tokens, n_kv_heads, head_dim]
  std::int64_t v_stride = 0;             ///< Floats between tokens.
  std::byte* const* kv_pages = nullptr;  ///< This layer's pages in order of position.
  dtype kv_type = dtype::f16;            ///< f16, f32, q8_0 or q4_0.
  std::int64_t n_tokens = 0;
  std::int64_t n_kv_heads = 0;
  std::int64_t head_dim = 0;        ///< A multiple of kv_granularity(kv_type).
  std::int64_t first_position = 0;  ///< Position of token 0.
};

/// Stores the keys and values of all tokens for one kv head. Calls for different heads may run at the same time.
using store_kv_fn = void (*)(const store_kv_args& args, std::int64_t kv_head);

struct attention_args {
  const float* q = nullptr;                    ///< [n_tokens, n_heads, head_dim]
  std::int64_t q_stride = 0;                   ///< Floats between tokens.
  float* out = nullptr;                        ///< [n_tokens, n_heads, head_dim]
  std::int64_t out_stride = 0;                 ///< Floats between tokens.
  const std::byte* const* kv_pages = nullptr;  ///< This layer's pages in order of position.
  dtype kv_type = dtype::f16;                  ///< f16, f32, q8_0 or q4_0.
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;      ///< Divides n_heads.
  std::int64_t head_dim = 0;        ///< A multiple of kv_granularity(kv_type).
  std::int64_t first_position = 0;  ///< Position of token 0; token t sees positions 0 .. first_position + t.
  std::int64_t window = 0;          ///< Sliding window: token at p sees p - window + 1 .. p. 0: no limit.
  float scale = 1;
  float softcap = 0;             ///< Scores become softcap * tanh(score / softcap); 0: off.
  const float* sinks = nullptr;  ///< [n_heads] extra logits that join maximum and denominator only; or null.
};

/// Floats of scratch that one call needs.
using attention_scratch_fn = std::size_t (*)(const attention_args& args);
/// Tokens [token_begin, token_end) of all heads of the group of `kv_head`. Calls for disjoint work may run at the same
/// time, each with its own scratch (64-byte aligned).
using attention_fn = void (*)(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin,
                              std::int64_t token_end, float* scratch);

}  // namespace flywheel::inline v0::kernels
