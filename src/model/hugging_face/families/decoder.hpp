// What most decoders share.
#pragma once

#include "src/model/hugging_face/family.hpp"

namespace flywheel::inline v0::hugging_face {

inline constexpr key_row decoder_keys[] = {
    {"max_position_embeddings|n_positions", "context_length"},
    {"hidden_size|n_embd", "embedding_length", key_type::count, true},
    {"num_hidden_layers|n_layer", "block_count", key_type::count, true},
    {"intermediate_size|n_inner", "feed_forward_length"},
    {"num_attention_heads|n_head", "attention.head_count", key_type::count, true},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"head_dim", "attention.value_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", key_type::number},
    {"layer_norm_eps|layer_norm_epsilon", "attention.layer_norm_epsilon", key_type::number},
    {"num_local_experts|num_experts", "expert_count"},
    {"num_experts_per_tok|top_k_experts", "expert_used_count"},
    {"moe_intermediate_size|expert_intermediate_size", "expert_feed_forward_length"},
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length"},
};

inline constexpr tensor_row decoder_tensors[] = {
    {"embed_tokens", "token_embd"},
    {"layers.{}.input_layernorm", "blk.{}.attn_norm"},
    {"layers.{}.self_attn.q_proj", "blk.{}.attn_q", rotary_rows},
    {"layers.{}.self_attn.k_proj", "blk.{}.attn_k", rotary_rows},
    {"layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
    {"layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
    {"layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"},
    {"layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"},
    {"layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
    {"layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
    {"layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
    {"layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
};

/// A router and experts, as the Qwen models name them: one tensor for each expert, or one for all.
inline constexpr tensor_row qwen_expert_tensors[] = {
    {"layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"},
    {"layers.{}.mlp.experts.{}.gate_proj.weight", "blk.{}.ffn_gate_exps.weight", expert},
    {"layers.{}.mlp.experts.{}.up_proj.weight", "blk.{}.ffn_up_exps.weight", expert},
    {"layers.{}.mlp.experts.{}.down_proj.weight", "blk.{}.ffn_down_exps.weight", expert},
    {"layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_exps.weight|blk.{}.ffn_up_exps.weight", expert_halves},
    {"layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"},
};

}  // namespace flywheel::inline v0::hugging_face
