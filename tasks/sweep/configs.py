"""Limits of transformers' config fields in tiny models, and types that need other values."""

from __future__ import annotations

from typing import Any

#: Size of every vocabulary: ten special ids, 256 bytes, and pieces. Sample ids are 100 … 189.
VOCABULARY = 512
#: Largest value of a size-like field -> the fields. Smaller defaults are kept.
_LIMITS = {
    VOCABULARY: """vocab_size_per_layer_input shape_vocab_size pronunciation_vocab_size
        encoder_hash_byte_group_vocab ngram_vocab_size_base src_vocab_size tgt_vocab_size
        decoder_vocab_size entity_vocab_size text_vocab_size codebook_size""",
    128: """max_position_embeddings n_positions max_seq_len n_ctx context_length
        max_source_positions max_target_positions max_2d_position_embeddings max_text_len""",
    64: """intermediate_size ffn_dim d_ff d_inner n_inner hidden_dim encoder_ffn_dim
        decoder_ffn_dim ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size
        shared_intermediate_size dense_intermediate_size expert_ffn_hidden_size mlp_dim
        moe_shared_expert_intermediate_size feed_forward_size intermediate_size_mlp
        block_multiple_of attention_hidden_size alignment_intermediate_size linear_units
        speech_decoder_postnet_units mamba_d_ssm shared_experts_intermediate_size""",
    32: """hidden_size d_model n_embd dim emb_dim embed_dim embedding_size embedding_dim
        word_embed_proj_dim projection_dim projector_hidden_size out_hidden_size lru_width
        decoder_hidden_size encoder_hidden_size image_size text_hidden_size projector_dim
        entity_emb_size hidden_size_per_layer_input max_window_layers moe_hidden_size
        nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel shape_embed_dim
        pronunciation_embed_dim d_latents hidden_size_global upsample_groups ple_embed_dim
        coordinate_size""",
    16: """q_lora_rank kv_lora_rank o_lora_rank state_size mamba_d_state ssm_state_size
        time_step_rank mamba_dt_rank""",
    8: """head_dim attention_head_size d_head d_kv qk_nope_head_dim v_head_dim sliding_window
        attention_window local_attention window_size chunk_size mamba_chunk_size mamba_d_head
        mamba_head_dim mamba_headdim index_head_dim index_topk linear_key_head_dim
        linear_value_head_dim linear_head_dim n_routed_experts num_experts num_local_experts
        moe_num_experts mamba_n_heads n_mamba_heads patch_size attention_chunk_size
        sliding_window_size relative_attention_num_buckets swa_head_dim global_head_dim
        kv_channels cross_head_dim local_attn_chunk_length lsh_attn_chunk_length block_size
        num_latents laurel_rank hc_lowrank""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads
        decoder_attention_heads qk_rope_head_dim rotary_dim index_n_heads linear_num_value_heads
        linear_num_heads swa_num_attention_heads encoder_num_attention_heads
        decoder_num_attention_heads num_query_tokens num_attention_groups num_self_attention_heads
        num_cross_attention_heads index_kpool split_ngram_parts""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_decoder_layers num_encoder_layers depth num_experts_per_tok moe_topk moe_top_k top_k
        experts_per_token num_experts_per_token n_group mamba_n_groups n_groups
        linear_num_key_heads swa_num_key_value_heads decoder_num_hidden_layers
        encoder_num_hidden_layers num_mem_blocks num_blocks num_self_attends_per_block""",
    1: """topk_group n_shared_experts num_shared_experts first_k_dense_replace
        num_random_blocks moe_num_shared_experts num_dense_layers num_nextn_predict_layers""",
}
LIMITS = {name: limit for limit, names in _LIMITS.items() for name in names.split()}
#: Fields that count layers, the preferred first.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
#: Fields that count key-value heads: grouped attention must stay grouped.
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
#: Roles of special tokens, in the order in which they get small ids.
ROLES = ("pad", "bos", "eos", "unk", "cls", "sep", "mask", "decoder_start")

_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_MOE = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
_TWO_MAMBA = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
#: Model type -> fields for which the rules fail: required values that default to None, sizes that
#: must fit each other, periods and patterns that would leave a kind of layer out.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "num_experts": 8,
        "num_expert_group": 2,
        "topk_group": 1,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_experts_per_token": 2,
    },
    "bamba": {"attn_layer_indices": [1]},
    "bros": {"hidden_size": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "diffusion_gemma_text": {
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "global_head_dim": 16,
    },
    "dots1": {**_MOE, "first_k_dense_replace": 1},
    "dots3_note_audio_encoder": {
        "adapter_input_size": 32,
        "adapter_out_dim": 32,
        "downsample_hidden_size": 32,
    },
    "dots3_note_text": {
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 12,
        "swa_qk_rope_head_dim": 4,
        "swa_v_head_dim": 8,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "ernie4_5_vl_moe_text": {"rope_parameters": _MROPE | {"mrope_section": [1, 1, 2]}},
    "esm": {
        "vocab_size": VOCABULARY,
        "pad_token_id": 1,
        "mask_token_id": 3,
        "token_dropout": True,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
    },
    "falcon_h1": {"mamba_n_heads": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.95, 0.0] * 2,
    },
    "gemma4_text": {"global_head_dim": 16},
    "glm4v_moe_text": {"rope_parameters": _MROPE | {"partial_rotary_factor": 0.5}, "head_dim": 16},
    "glm4v_text": {"rope_parameters": _MROPE},
    "glm_image_text": {"rope_parameters": _MROPE},
    "glm_ocr_text": {"rope_parameters": _MROPE},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _TWO_MAMBA,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": _MROPE | {"mrope_section": [1, 1, 1, 1]}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts": 8, "num_experts_per_token": 2},
    "kolibri1": {"num_local_experts": 8},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"], "num_hidden_layers": 3},
    "lilt": {"hidden_size": 48},
    "llama4_vision_model": {
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "vision_output_dim": 32,
    },
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "mistral4": {"qk_nope_head_dim": 4},
    "mpnet": {"relative_attention_num_buckets": 32},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "neomme": {"head_dim": 16},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "paddleocr_vl_text": {"rope_parameters": _MROPE},
    "qwen2_5_omni_text": {"rope_parameters": _MROPE},
    "qwen2_5_omni_thinker": {"vision_start_token_id": VOCABULARY + 54},
    "qwen2_5_vl_text": {"rope_parameters": _MROPE},
    "qwen2_vl_text": {"rope_parameters": _MROPE},
    "qwen3_asr_encoder": {"downsample_hidden_size": 32, "output_dim": 32},
    "qwen3_omni_moe_text": {"rope_parameters": _MROPE},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": VOCABULARY + 54},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},  # one attention in three layers
    "reformer": {
        "axial_pos_shape": (8, 16),
        "axial_pos_embds_dim": (8, 24),
        "hash_seed": 0,
        "attn_layers": ["local", "lsh"],
    },
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
}
