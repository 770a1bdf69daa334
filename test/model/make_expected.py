#!/usr/bin/env python3
"""Writes expected.json: how Hugging Face transformers reads config.json files of the supported families.

    python test/model/make_expected.py

Needs torch and transformers 5.17. Each case is a config.json; what is expected is taken from the model that
transformers builds from it (on the meta device: shapes without memory), not from the configuration's text.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SMALL = {
    'vocab_size': 320,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 512,
    'rms_norm_eps': 1e-5,
}


def family(architecture, model_type):
    def config(**keys):
        return {'architectures': [architecture], 'model_type': model_type, **keys}

    return config


llama = family('LlamaForCausalLM', 'llama')
mistral = family('MistralForCausalLM', 'mistral')
qwen2 = family('Qwen2ForCausalLM', 'qwen2')
qwen3 = family('Qwen3ForCausalLM', 'qwen3')
phi3 = family('Phi3ForCausalLM', 'phi3')
smollm3 = family('SmolLM3ForCausalLM', 'smollm3')
granite = family('GraniteForCausalLM', 'granite')
olmo2 = family('Olmo2ForCausalLM', 'olmo2')
olmo3 = family('Olmo3ForCausalLM', 'olmo3')
ministral = family('MinistralForCausalLM', 'ministral')
ministral3 = family('Ministral3ForCausalLM', 'ministral3')
mixtral = family('MixtralForCausalLM', 'mixtral')
gemma2 = family('Gemma2ForCausalLM', 'gemma2')
gemma3 = family('Gemma3ForCausalLM', 'gemma3_text')
gpt_oss = family('GptOssForCausalLM', 'gpt_oss')
glm4_moe = family('Glm4MoeForCausalLM', 'glm4_moe')
qwen2_moe = family('Qwen2MoeForCausalLM', 'qwen2_moe')
llama4 = family('Llama4ForCausalLM', 'llama4_text')
gemma4 = family('Gemma4ForCausalLM', 'gemma4_text')

LLAMA3_ROPE = {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 128,
}
SLIDING = ['full_attention', 'sliding_attention', 'full_attention', 'sliding_attention']

CASES = {
    'llama: every key missing': llama(),
    'mistral: every key missing': mistral(),
    'qwen2: every key missing': qwen2(),
    'qwen3: every key missing': qwen3(),
    'llama 2': llama(**SMALL, rope_theta=10000.0, rope_scaling=None, torch_dtype='float16', eos_token_id=2),
    'llama: null key heads': llama(**{**SMALL, 'num_key_value_heads': None}),
    'llama: key heads missing': llama(**{k: v for k, v in SMALL.items() if k != 'num_key_value_heads'}),
    'llama: null head_dim': llama(**SMALL, head_dim=None),
    'llama: head_dim': llama(**SMALL, head_dim=32),
    'llama: biases': llama(**SMALL, attention_bias=True, mlp_bias=True),
    'llama: tied': llama(**SMALL, tie_word_embeddings=True),
    'llama: sliding_window means nothing': llama(**SMALL, sliding_window=16),
    'llama: several ends of sequence': llama(**SMALL, bos_token_id=7, eos_token_id=[8, 9]),
    'llama: no end of sequence': llama(**SMALL, bos_token_id=None, eos_token_id=None),
    'llama: both names of the type': llama(**SMALL, torch_dtype='float16', dtype='bfloat16'),
    'llama 3, transformers 4': llama(**SMALL, rope_theta=500000.0, rope_scaling={'rope_type': 'llama3', **LLAMA3_ROPE}),
    'llama 3, transformers 5': llama(
        **SMALL, rope_parameters={'rope_type': 'llama3', 'rope_theta': 500000.0, **LLAMA3_ROPE}, dtype='bfloat16'
    ),
    'llama 3, no original length': llama(
        **SMALL,
        rope_scaling={'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0},
    ),
    'linear, the oldest style': llama(**SMALL, rope_scaling={'type': 'linear', 'factor': 2.0}),
    'linear, transformers 5': llama(**SMALL, rope_parameters={'rope_type': 'linear', 'factor': 4, 'rope_theta': 20000}),
    'rope_theta beside rope_parameters': llama(
        **SMALL, rope_theta=1.0, rope_parameters={'rope_type': 'default', 'rope_theta': 30000.0}
    ),
    'rope_theta outside rope_parameters': llama(**SMALL, rope_theta=40000.0, rope_parameters={'rope_type': 'default'}),
    'rope_scaling before rope_parameters': llama(
        **SMALL,
        rope_scaling={'type': 'linear', 'factor': 2.0},
        rope_parameters={'rope_type': 'default', 'rope_theta': 30000.0},
    ),
    'an empty rope_scaling': llama(
        **SMALL, rope_scaling={}, rope_parameters={'rope_type': 'default', 'rope_theta': 30000.0}
    ),
    'rope_type before type': llama(**SMALL, rope_scaling={'rope_type': 'linear', 'type': 'default', 'factor': 2.0}),
    'default rope by name': llama(**SMALL, rope_theta=50000.0, rope_scaling={'type': 'default'}),
    'yarn': llama(
        **SMALL, rope_scaling={'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 128}
    ),
    'yarn, every key': llama(
        **SMALL,
        rope_parameters={
            'rope_type': 'yarn',
            'rope_theta': 150000.0,
            'factor': 4.0,
            'original_max_position_embeddings': 128,
            'attention_factor': 0.75,
            'beta_fast': 16.0,
            'beta_slow': 2.0,
            'truncate': False,
        },
    ),
    'yarn: mscale': llama(
        **SMALL,
        rope_scaling={
            'type': 'yarn',
            'factor': 40.0,
            'original_max_position_embeddings': 128,
            'mscale': 1.0,
            'mscale_all_dim': 0.707,
        },
    ),
    'yarn: mscale alone': llama(
        **SMALL,
        rope_scaling={'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 128, 'mscale': 0.5},
    ),
    'yarn: mscale of zero': llama(
        **SMALL,
        rope_scaling={
            'type': 'yarn',
            'factor': 4.0,
            'original_max_position_embeddings': 128,
            'mscale': 0,
            'mscale_all_dim': 1,
        },
    ),
    'yarn: null factor': llama(
        **SMALL, rope_scaling={'type': 'yarn', 'factor': None, 'original_max_position_embeddings': 128}
    ),
    'yarn: factor of one': llama(
        **SMALL, rope_scaling={'type': 'yarn', 'factor': 1.0, 'original_max_position_embeddings': 512}
    ),
    'yarn: null betas': llama(
        **SMALL,
        rope_scaling={
            'type': 'yarn',
            'factor': 4.0,
            'original_max_position_embeddings': 128,
            'beta_fast': None,
            'beta_slow': 0,
        },
    ),
    'yarn: not truncated': llama(
        **{**SMALL, 'max_position_embeddings': 16384},
        head_dim=64,
        rope_scaling={'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 4096, 'truncate': False},
    ),
    'yarn: no original length': llama(**SMALL, rope_scaling={'type': 'yarn', 'factor': 4.0}),
    'yarn: the original length outside': llama(
        **SMALL,
        original_max_position_embeddings=64,
        rope_scaling={'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 128},
    ),
    'mistral: window': mistral(**SMALL, sliding_window=48),
    'mistral: null window': mistral(**SMALL, sliding_window=None, head_dim=32),
    'mistral: window missing': mistral(**SMALL),
    'mistral: attention_bias means nothing': mistral(**SMALL, attention_bias=True),
    'qwen2: window off': qwen2(**SMALL, use_sliding_window=False, sliding_window=48, max_window_layers=2),
    'qwen2: window from a layer on': qwen2(**SMALL, use_sliding_window=True, sliding_window=48, max_window_layers=3),
    'qwen2: null window': qwen2(**SMALL, use_sliding_window=True, sliding_window=None, max_window_layers=1),
    'qwen2: layer_types': qwen2(**SMALL, use_sliding_window=True, sliding_window=48, layer_types=SLIDING),
    'qwen2: attention_bias means nothing': qwen2(**SMALL, attention_bias=False),
    'qwen2: head_dim': qwen2(**SMALL, head_dim=8),
    'qwen2: tied': qwen2(**SMALL, tie_word_embeddings=True, eos_token_id=5),
    'qwen3: head_dim': qwen3(**SMALL, head_dim=24, rope_theta=1000000, rope_scaling=None),
    'qwen3: head_dim missing': qwen3(**SMALL),
    'qwen3: biases': qwen3(**SMALL, attention_bias=True),
    'qwen3: window from a layer on': qwen3(**SMALL, use_sliding_window=True, sliding_window=32, max_window_layers=1),
    'qwen3: layer_types': qwen3(**SMALL, use_sliding_window=True, sliding_window=32, layer_types=SLIDING),
    'qwen3: yarn': qwen3(
        **SMALL, rope_scaling={'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 256}
    ),
    'dynamic': llama(**SMALL, rope_scaling={'type': 'dynamic', 'factor': 2.0}),
    'longrope': llama(
        **SMALL,
        original_max_position_embeddings=128,
        rope_scaling={
            'rope_type': 'longrope',
            'short_factor': [1.0] * 4 + [1.5] * 4,
            'long_factor': [2.0] * 4 + [5.0] * 4,
        },
    ),
    'phi3: every key missing': phi3(),
    'phi3: Phi-3-mini-4k-instruct': phi3(
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=32,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=10000.0,
        sliding_window=2047,
        tie_word_embeddings=False,
        torch_dtype='bfloat16',
        vocab_size=32064,
        bos_token_id=1,
        eos_token_id=32000,
    ),
    'phi3: phi-4': phi3(
        hidden_size=5120,
        intermediate_size=17920,
        max_position_embeddings=16384,
        num_attention_heads=40,
        num_hidden_layers=40,
        num_key_value_heads=10,
        original_max_position_embeddings=16384,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=250000,
        sliding_window=None,
        tie_word_embeddings=False,
        torch_dtype='bfloat16',
        vocab_size=100352,
        bos_token_id=100257,
        eos_token_id=100265,
    ),
    'phi3: Phi-4-mini-instruct': phi3(
        attention_bias=False,
        full_attn_mod=1,
        hidden_size=3072,
        intermediate_size=8192,
        interpolate_factor=1,
        lm_head_bias=False,
        max_position_embeddings=131072,
        mlp_bias=False,
        num_attention_heads=24,
        num_hidden_layers=32,
        num_key_value_heads=8,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rms_norm_eps=1e-05,
        rope_scaling={
            # fmt: off
            'long_factor': [
                1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
                2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
                5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129,
                13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418,
                28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28,
                33.49, 33.5, 44.16, 47.77,
            ],
            # fmt: on
            'short_factor': [1.0] * 48,
            'type': 'longrope',
        },
        rope_theta=10000.0,
        sliding_window=262144,
        tie_word_embeddings=True,
        torch_dtype='bfloat16',
        vocab_size=200064,
        bos_token_id=199999,
        eos_token_id=199999,
    ),
    'smollm3: every key missing': smollm3(),
    'smollm3: SmolLM3-3B': smollm3(
        attention_bias=False,
        hidden_size=2048,
        intermediate_size=11008,
        layer_types=['full_attention'] * 36,
        max_position_embeddings=65536,
        max_window_layers=28,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9,
        num_attention_heads=16,
        num_hidden_layers=36,
        num_key_value_heads=4,
        pretraining_tp=2,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=5000000.0,
        sliding_window=None,
        torch_dtype='bfloat16',
        use_sliding_window=False,
        vocab_size=128256,
        bos_token_id=128000,
        eos_token_id=128012,
    ),
    'smollm3: the window where there is no rotation': smollm3(
        **SMALL,
        use_sliding_window=True,
        sliding_window=16,
        no_rope_layer_interval=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    ),
    'granite: every key missing': granite(),
    'granite: granite-3.3-8b-instruct': granite(
        attention_bias=False,
        attention_multiplier=0.0078125,
        embedding_multiplier=12.0,
        hidden_size=4096,
        intermediate_size=12800,
        logits_scaling=16.0,
        max_position_embeddings=131072,
        mlp_bias=False,
        num_attention_heads=32,
        num_hidden_layers=40,
        num_key_value_heads=8,
        residual_multiplier=0.22,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=10000000.0,
        tie_word_embeddings=True,
        torch_dtype='bfloat16',
        vocab_size=49159,
        bos_token_id=0,
        eos_token_id=0,
    ),
    'olmo2: every key missing': olmo2(),
    'olmo2: OLMo-2-1124-7B': olmo2(
        attention_bias=False,
        hidden_size=4096,
        intermediate_size=11008,
        max_position_embeddings=4096,
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=32,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=500000,
        tie_word_embeddings=False,
        torch_dtype='float32',
        vocab_size=100352,
        eos_token_id=100257,
    ),
    'olmo3: every key missing': olmo3(),
    'olmo3: Olmo-3-1025-7B': olmo3(
        attention_bias=False,
        hidden_size=4096,
        intermediate_size=11008,
        layer_types=(['sliding_attention'] * 3 + ['full_attention']) * 8,
        max_position_embeddings=65536,
        num_attention_heads=32,
        num_hidden_layers=32,
        num_key_value_heads=32,
        rms_norm_eps=1e-06,
        rope_scaling={
            'attention_factor': 1.2079441541679836,
            'beta_fast': 32.0,
            'beta_slow': 1.0,
            'factor': 8.0,
            'original_max_position_embeddings': 8192,
            'rope_type': 'yarn',
        },
        rope_theta=500000,
        sliding_window=4096,
        tie_word_embeddings=False,
        dtype='bfloat16',
        vocab_size=100278,
        eos_token_id=100257,
    ),
    'olmo3: rope_parameters by the type of layer': olmo3(
        **SMALL,
        eos_token_id=5,
        rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 10000.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 20000.0},
        },
    ),
    'ministral: keys missing': ministral(head_dim=64),
    'ministral: layer_types': ministral(**SMALL, head_dim=32, sliding_window=32, layer_types=SLIDING),
    'ministral3: every key missing': ministral3(),
    'ministral3: Ministral-3-8B-Base-2512, its language model': ministral3(
        head_dim=128,
        hidden_size=4096,
        intermediate_size=14336,
        max_position_embeddings=262144,
        num_attention_heads=32,
        num_hidden_layers=34,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        rope_parameters={
            'beta_fast': 32.0,
            'beta_slow': 1.0,
            'factor': 16.0,
            'llama_4_scaling_beta': 0.1,
            'mscale': 1.0,
            'mscale_all_dim': 1.0,
            'original_max_position_embeddings': 16384,
            'rope_theta': 1000000.0,
            'rope_type': 'yarn',
            'type': 'yarn',
        },
        sliding_window=None,
        tie_word_embeddings=False,
        dtype='bfloat16',
        vocab_size=131072,
    ),
    'mixtral: every key missing': mixtral(),
    'mixtral: Mixtral-8x7B-v0.1': mixtral(
        hidden_size=4096,
        intermediate_size=14336,
        max_position_embeddings=32768,
        num_attention_heads=32,
        num_experts_per_tok=2,
        num_hidden_layers=32,
        num_key_value_heads=8,
        num_local_experts=8,
        rms_norm_eps=1e-05,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=False,
        torch_dtype='bfloat16',
        vocab_size=32000,
        bos_token_id=1,
        eos_token_id=2,
    ),
    'mixtral: window': mixtral(**SMALL, sliding_window=32, num_local_experts=4),
    'gemma2: every key missing': gemma2(),
    'gemma2: gemma-2-9b': gemma2(
        attention_bias=False,
        attn_logit_softcapping=50.0,
        bos_token_id=2,
        cache_implementation='hybrid',
        eos_token_id=1,
        final_logit_softcapping=30.0,
        head_dim=256,
        hidden_act='gelu_pytorch_tanh',
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=3584,
        intermediate_size=14336,
        max_position_embeddings=8192,
        num_attention_heads=16,
        num_hidden_layers=42,
        num_key_value_heads=8,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        sliding_window=4096,
        sliding_window_size=4096,
        torch_dtype='float32',
        vocab_size=256000,
    ),
    'gemma2: gemma-2-27b': gemma2(
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        head_dim=128,
        hidden_act='gelu_pytorch_tanh',
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=4608,
        intermediate_size=36864,
        max_position_embeddings=8192,
        num_attention_heads=32,
        num_hidden_layers=46,
        num_key_value_heads=16,
        query_pre_attn_scalar=144,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        sliding_window=4096,
        torch_dtype='float32',
        vocab_size=256000,
        _attn_implementation='eager',
    ),
    'gemma2: null caps, layer_types': gemma2(
        **SMALL, head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None, layer_types=SLIDING
    ),
    'gemma3_text: every key missing': gemma3(),
    'gemma3_text: gemma-3-1b-it': gemma3(
        attention_bias=False,
        attn_logit_softcapping=None,
        bos_token_id=2,
        cache_implementation='hybrid',
        eos_token_id=[1, 106],
        final_logit_softcapping=None,
        head_dim=256,
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=1152,
        intermediate_size=6912,
        max_position_embeddings=32768,
        num_attention_heads=4,
        num_hidden_layers=26,
        num_key_value_heads=1,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=512,
        sliding_window_pattern=6,
        torch_dtype='bfloat16',
        vocab_size=262144,
    ),
    'gemma3_text: the language model of gemma-3-4b-it': gemma3(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        rope_scaling={'factor': 8.0, 'rope_type': 'linear'},
        sliding_window=1024,
    ),
    'gemma3_text: rope_parameters by the type of layer': gemma3(
        **SMALL,
        head_dim=16,
        layer_types=SLIDING,
        rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 8.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 5000.0},
        },
    ),
    'gpt_oss: every key missing': gpt_oss(),
    'gpt_oss: gpt-oss-20b in bfloat16': gpt_oss(
        attention_bias=True,
        eos_token_id=200002,
        experts_per_token=4,
        head_dim=64,
        hidden_act='silu',
        hidden_size=2880,
        initial_context_length=4096,
        intermediate_size=2880,
        layer_types=['sliding_attention', 'full_attention'] * 12,
        max_position_embeddings=131072,
        num_attention_heads=64,
        num_experts_per_tok=4,
        num_hidden_layers=24,
        num_key_value_heads=8,
        num_local_experts=32,
        rms_norm_eps=1e-05,
        rope_scaling={
            'beta_fast': 32.0,
            'beta_slow': 1.0,
            'factor': 32.0,
            'original_max_position_embeddings': 4096,
            'rope_type': 'yarn',
            'truncate': False,
        },
        rope_theta=150000,
        sliding_window=128,
        swiglu_limit=7.0,
        tie_word_embeddings=False,
        torch_dtype='bfloat16',
        vocab_size=201088,
    ),
    'glm4_moe: GLM-4.5-Air': glm4_moe(
        attention_bias=True,
        eos_token_id=[151329, 151336, 151338],
        first_k_dense_replace=1,
        head_dim=128,
        hidden_act='silu',
        hidden_size=4096,
        intermediate_size=10944,
        max_position_embeddings=131072,
        moe_intermediate_size=1408,
        n_group=1,
        n_routed_experts=128,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_attention_heads=96,
        num_experts_per_tok=8,
        num_hidden_layers=46,
        num_key_value_heads=8,
        num_nextn_predict_layers=1,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=1000000,
        routed_scaling_factor=1.0,
        tie_word_embeddings=False,
        topk_group=1,
        torch_dtype='bfloat16',
        use_qk_norm=False,
        vocab_size=151552,
    ),
    'glm4_moe: GLM-4.5': glm4_moe(
        attention_bias=True,
        first_k_dense_replace=3,
        head_dim=128,
        hidden_size=5120,
        intermediate_size=12288,
        moe_intermediate_size=1536,
        n_routed_experts=160,
        n_shared_experts=1,
        num_attention_heads=96,
        num_experts_per_tok=8,
        num_hidden_layers=92,
        num_key_value_heads=8,
        num_nextn_predict_layers=1,
        partial_rotary_factor=0.5,
        rope_theta=1000000,
        routed_scaling_factor=2.5,
        use_qk_norm=True,
        torch_dtype='bfloat16',
        vocab_size=151552,
    ),
    'glm4_moe: groups, and missing keys': glm4_moe(
        **SMALL, head_dim=16, n_routed_experts=24, n_group=4, topk_group=2, n_shared_experts=3, norm_topk_prob=False
    ),
    'qwen2_moe: every key missing': qwen2_moe(),
    'qwen2_moe: Qwen1.5-MoE-A2.7B': qwen2_moe(
        decoder_sparse_step=1,
        hidden_size=2048,
        intermediate_size=5632,
        max_position_embeddings=8192,
        max_window_layers=21,
        moe_intermediate_size=1408,
        norm_topk_prob=False,
        num_attention_heads=16,
        num_experts=60,
        num_experts_per_tok=4,
        num_hidden_layers=24,
        num_key_value_heads=16,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        shared_expert_intermediate_size=5632,
        sliding_window=32768,
        tie_word_embeddings=False,
        torch_dtype='bfloat16',
        use_sliding_window=False,
        vocab_size=151936,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
    'llama4_text: every key missing': llama4(),
    'llama4_text: the language model of Llama-4-Scout-17B-16E-Instruct': llama4(
        attention_bias=False,
        attention_chunk_size=8192,
        attention_dropout=0.0,
        attn_scale=0.1,
        attn_temperature_tuning=True,
        bos_token_id=200000,
        eos_token_id=[200001, 200007, 200008],
        floor_scale=8192,
        for_llm_compressor=False,
        head_dim=128,
        hidden_act='silu',
        hidden_size=5120,
        interleave_moe_layer_step=1,
        intermediate_size=8192,
        intermediate_size_mlp=16384,
        max_position_embeddings=10485760,
        no_rope_layers=[],
        num_attention_heads=40,
        num_experts_per_tok=1,
        num_hidden_layers=48,
        num_key_value_heads=8,
        num_local_experts=16,
        output_router_logits=False,
        pad_token_id=200018,
        rms_norm_eps=1e-05,
        rope_scaling={
            'factor': 16.0,
            'high_freq_factor': 1.0,
            'low_freq_factor': 1.0,
            'original_max_position_embeddings': 8192,
            'rope_type': 'llama3',
        },
        rope_theta=500000.0,
        router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
        torch_dtype='bfloat16',
        use_qk_norm=True,
        vocab_size=202048,
    ),
    'llama4_text: the language model of Llama-4-Maverick-17B-128E-Instruct': llama4(
        attention_bias=False,
        attention_chunk_size=8192,
        attn_scale=0.1,
        attn_temperature_tuning=True,
        bos_token_id=200000,
        eos_token_id=[200001, 200007, 200008],
        floor_scale=8192,
        head_dim=128,
        hidden_act='silu',
        hidden_size=5120,
        interleave_moe_layer_step=2,
        intermediate_size=8192,
        intermediate_size_mlp=16384,
        max_position_embeddings=1048576,
        moe_layers=list(range(1, 48, 2)),
        no_rope_layers=[int((i + 1) % 4 != 0) for i in range(48)],
        num_attention_heads=40,
        num_experts_per_tok=1,
        num_hidden_layers=48,
        num_key_value_heads=8,
        num_local_experts=128,
        pad_token_id=200018,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=500000.0,
        torch_dtype='bfloat16',
        use_qk_norm=False,
        vocab_size=202048,
    ),
    'gemma4_text: keys missing': gemma4(hidden_size_per_layer_input=0),
    'gemma4_text: the language model of gemma-4-31B-it': gemma4(
        attention_bias=False,
        attention_dropout=0.0,
        attention_k_eq_v=True,
        bos_token_id=2,
        dtype='bfloat16',
        enable_moe_block=False,
        eos_token_id=1,
        final_logit_softcapping=30.0,
        global_head_dim=512,
        head_dim=256,
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=5376,
        hidden_size_per_layer_input=0,
        intermediate_size=21504,
        layer_types=[kind for _ in range(10) for kind in ['sliding_attention'] * 5 + ['full_attention']],
        max_position_embeddings=262144,
        num_attention_heads=32,
        num_global_key_value_heads=4,
        num_hidden_layers=60,
        num_key_value_heads=16,
        num_kv_shared_layers=0,
        rms_norm_eps=1e-06,
        rope_parameters={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        sliding_window=1024,
        tie_word_embeddings=True,
        use_bidirectional_attention='vision',
        use_cache=True,
        use_double_wide_mlp=False,
        vocab_size=262144,
    ),
    'gemma4_text: the language model of gemma-4-26B-A4B-it': gemma4(
        attention_bias=False,
        attention_dropout=0.0,
        attention_k_eq_v=True,
        bos_token_id=2,
        dtype='bfloat16',
        enable_moe_block=True,
        eos_token_id=1,
        final_logit_softcapping=30.0,
        global_head_dim=512,
        head_dim=256,
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=2816,
        hidden_size_per_layer_input=0,
        intermediate_size=2112,
        layer_types=[kind for _ in range(5) for kind in ['sliding_attention'] * 5 + ['full_attention']],
        max_position_embeddings=262144,
        moe_intermediate_size=704,
        num_attention_heads=16,
        num_experts=128,
        num_global_key_value_heads=2,
        num_hidden_layers=30,
        num_key_value_heads=8,
        num_kv_shared_layers=0,
        rms_norm_eps=1e-06,
        rope_parameters={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        sliding_window=1024,
        tie_word_embeddings=True,
        top_k_experts=8,
        use_bidirectional_attention='vision',
        use_cache=True,
        use_double_wide_mlp=False,
        vocab_size=262144,
    ),
    'gemma4_text: heads of the layers without a window, keys that are not values': gemma4(
        **SMALL,
        global_head_dim=32,
        head_dim=16,
        hidden_size_per_layer_input=0,
        num_global_key_value_heads=1,
        layer_types=['full_attention', 'sliding_attention', 'sliding_attention', 'sliding_attention'],
    ),
    'gemma4_text: the language model of gemma-4-E2B-it': gemma4(
        attention_bias=False,
        attention_dropout=0.0,
        attention_k_eq_v=False,
        bos_token_id=2,
        dtype='bfloat16',
        enable_moe_block=False,
        eos_token_id=1,
        final_logit_softcapping=30.0,
        global_head_dim=512,
        head_dim=256,
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=1536,
        hidden_size_per_layer_input=256,
        intermediate_size=6144,
        layer_types=[kind for _ in range(7) for kind in ['sliding_attention'] * 4 + ['full_attention']],
        max_position_embeddings=131072,
        num_attention_heads=8,
        num_global_key_value_heads=None,
        num_hidden_layers=35,
        num_key_value_heads=1,
        num_kv_shared_layers=20,
        rms_norm_eps=1e-06,
        rope_parameters={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        sliding_window=512,
        tie_word_embeddings=True,
        use_bidirectional_attention=None,
        use_cache=True,
        use_double_wide_mlp=True,
        vocab_size=262144,
        vocab_size_per_layer_input=262144,
    ),
    'gemma4_text: the language model of gemma-4-E4B-it': gemma4(
        attention_bias=False,
        attention_dropout=0.0,
        attention_k_eq_v=False,
        bos_token_id=2,
        dtype='bfloat16',
        enable_moe_block=False,
        eos_token_id=1,
        final_logit_softcapping=30.0,
        global_head_dim=512,
        head_dim=256,
        hidden_activation='gelu_pytorch_tanh',
        hidden_size=2560,
        hidden_size_per_layer_input=256,
        intermediate_size=10240,
        layer_types=[kind for _ in range(7) for kind in ['sliding_attention'] * 5 + ['full_attention']],
        max_position_embeddings=131072,
        num_attention_heads=8,
        num_global_key_value_heads=None,
        num_hidden_layers=42,
        num_key_value_heads=2,
        num_kv_shared_layers=18,
        rms_norm_eps=1e-06,
        rope_parameters={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        sliding_window=512,
        tie_word_embeddings=True,
        use_bidirectional_attention=None,
        use_cache=True,
        use_double_wide_mlp=False,
        vocab_size=262144,
        vocab_size_per_layer_input=262144,
    ),
    'llama4_text: layer_types, no temperature': llama4(
        **SMALL,
        attn_temperature_tuning=False,
        layer_types=['full_attention', 'chunked_attention', 'chunked_attention', 'full_attention'],
        no_rope_layer_interval=3,
    ),
}


def rope_scaling(rope, attention_scaling):
    kind = rope['rope_type']
    if kind == 'default':
        return {'type': kind}
    if kind == 'linear':
        return {'type': kind, 'factor': rope['factor']}
    if kind == 'proportional':
        return {'type': kind, 'factor': rope.get('factor', 1)}
    if kind == 'dynamic':
        return {'type': kind, 'factor': rope['factor']}
    if kind == 'llama3':
        return {
            'type': kind,
            'factor': rope['factor'],
            'lowFreqFactor': rope['low_freq_factor'],
            'highFreqFactor': rope['high_freq_factor'],
            'originalMaxPositionEmbeddings': rope['original_max_position_embeddings'],
        }
    if kind == 'longrope':
        return {
            'type': kind,
            'attentionFactor': attention_scaling,
            'originalMaxPositionEmbeddings': rope['original_max_position_embeddings'],
            'shortFactors': rope['short_factor'],
            'longFactors': rope['long_factor'],
        }
    return {
        'type': kind,
        'attentionFactor': attention_scaling,
        'originalMaxPositionEmbeddings': rope['original_max_position_embeddings'],
        'truncate': rope.get('truncate', True),
    }


# What these parameters come to, in the longest context, that transformers keeps to itself.
LONGEST = {
    'yarn': lambda rope, positions: None,
    'dynamic': lambda rope, positions: int(positions * rope['factor']),
    'longrope': lambda rope, positions: rope['original_max_position_embeddings'] + 1,
    'proportional': lambda rope, positions: None,
}


def layer_rope(read, base, index):
    """The rotary embedding of a layer."""
    if not getattr(base.layers[index].self_attn, 'use_rope', True):
        return None
    parameters, kwargs = read.rope_parameters, {}
    if any(key.endswith('_attention') for key in parameters):
        kwargs = {'layer_type': read.layer_types[index]}
        parameters = parameters[read.layer_types[index]]
    kind = parameters['rope_type']
    config = read.per_layer_config[index] if read.model_type == 'gemma4_text' else read
    init = base.rotary_emb.compute_default_rope_parameters if kind == 'default' else ROPE_INIT_FUNCTIONS[kind]
    frequencies, attention_scaling = init(config, 'cpu', **kwargs)
    if kind in LONGEST:
        length = LONGEST[kind](parameters, read.max_position_embeddings)
        frequencies, attention_scaling = init(config, 'cpu', seq_len=length, **kwargs)
    return {
        'theta': parameters['rope_theta'],
        'scaling': rope_scaling(parameters, attention_scaling),
        'rotaryDim': 2 * len(frequencies),
        'inverseFrequencies': frequencies.tolist() if kind in LONGEST else None,
    }


def layer_ropes(read, base):
    """Those of all layers; the frequencies beside the first of each kind alone."""
    ropes = [layer_rope(read, base, index) for index in range(len(base.layers))]
    seen = []
    for rope in ropes:
        frequencies = rope and rope['inverseFrequencies']
        if frequencies in seen:
            rope['inverseFrequencies'] = None
        elif frequencies:
            seen.append(frequencies)
    return ropes


def mlp_of(layer):
    return getattr(layer, 'mlp', None) or layer.feed_forward


def experts(read, layers):
    is_gemma4 = read.model_type == 'gemma4_text'
    blocks = [layer if is_gemma4 else mlp_of(layer) for layer in layers]
    blocks = [block if hasattr(block, 'experts') else None for block in blocks]
    block = next((each for each in blocks if each is not None), None)
    if block is None:
        return None
    router = getattr(block, 'router', None) or block.gate
    shared = getattr(block, 'shared_expert', None) or getattr(block, 'shared_experts', None)
    is_llama4 = read.model_type == 'llama4_text'
    is_transposed = is_llama4 or read.model_type == 'gpt_oss'
    return {
        'numExperts': block.experts.down_proj.shape[0],
        'numExpertsPerToken': read.top_k_experts if is_gemma4 else router.top_k,
        'intermediateSize': block.experts.down_proj.shape[1 if is_transposed else 2],
        'normTopkProb': getattr(router, 'norm_topk_prob', not is_llama4),
        'sigmoidScores': is_llama4 or hasattr(router, 'e_score_correction_bias'),
        'scoreBias': hasattr(router, 'e_score_correction_bias'),
        'scalesInput': is_llama4,
        'numGroups': getattr(router, 'num_group', 1),
        'numChosenGroups': getattr(read, 'topk_group', 1),
        'weightScale': getattr(router, 'routed_scaling_factor', 1),
        'routerBias': getattr(router, 'bias', None) is not None,
        'routerNorm': hasattr(router, 'norm'),
        'expertScales': hasattr(router, 'per_expert_scale'),
        'bias': hasattr(block.experts, 'down_proj_bias'),
        'sharedIntermediateSize': 0 if shared is None else shared.down_proj.weight.shape[1],
        'sharedGate': hasattr(block, 'shared_expert_gate'),
        'besideMlp': is_gemma4,
        'layers': [each is not None for each in blocks],
    }


def sliding_windows(read, layers):
    if read.model_type == 'llama4_text':
        return [read.attention_chunk_size if kind == 'chunked_attention' else 0 for kind in read.layer_types]
    if read.model_type in ('mistral', 'ministral3', 'phi3', 'mixtral'):  # their layers ask the configuration
        return [read.sliding_window or 0] * len(layers)
    return [getattr(each.self_attn, 'sliding_window', None) or 0 for each in layers]


def other_heads(read, layers):
    """The heads of Gemma 4's layers without a window."""
    if read.model_type != 'gemma4_text':
        return None
    own = [not each.self_attn.is_sliding for each in layers]
    attention = layers[own.index(True)].self_attn
    return {
        'numKvHeads': attention.k_proj.weight.shape[0] // attention.head_dim,
        'headDim': attention.head_dim,
        'keysAreValues': attention.v_proj is None,
        'layers': own,
    }


def kv_layers(layers):
    """The layer whose keys and values each layer of Gemma 4 attends to: the last that stores those of its kind."""
    attentions = [each.self_attn for each in layers]
    if not any(getattr(each, 'is_kv_shared_layer', False) for each in attentions):
        return None
    stores = {each.layer_type: index for index, each in enumerate(attentions) if each.store_full_length_kv}
    return [stores[each.layer_type] if each.is_kv_shared_layer else index for index, each in enumerate(attentions)]


def has_double_wide_mlps(layers):
    mlps = [getattr(layer, 'mlp', None) for layer in layers]
    widths = {mlp.down_proj.weight.shape[1] for mlp in mlps if hasattr(mlp, 'down_proj')}
    assert len(widths) < 2 or max(widths) == 2 * min(widths)
    return len(widths) == 2


def qk_norm(attention):
    if hasattr(attention, 'qk_norm'):
        return 'unweighted'
    norm = getattr(attention, 'q_norm', None)
    if norm is None:
        return None
    return 'head' if norm.weight.shape[0] == attention.head_dim else 'projection'


def activation(mlp):
    if hasattr(getattr(mlp, 'experts', None), 'alpha'):
        assert (mlp.experts.alpha, mlp.experts.limit) == (1.702, 7.0)
        return 'clampedSwiglu'
    function = type(getattr(mlp, 'act_fn', None) or getattr(mlp, 'activation_fn', None) or mlp.experts.act_fn).__name__
    return {'SiLUActivation': 'silu', 'GELUTanh': 'geluTanh'}[function]


def expected(config):
    read = CONFIG_MAPPING[config['model_type']].from_dict(copy.deepcopy(config))
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(read)
    base = model.model
    layer = next((each for each in base.layers if getattr(each.self_attn, 'is_sliding', False)), base.layers[0])
    attention, mlp = layer.self_attn, mlp_of(layer)
    is_llama4 = read.model_type == 'llama4_text'
    q = getattr(attention, 'q_proj', None) or attention.qkv_proj
    eos = read.eos_token_id
    dense = not hasattr(mlp, 'experts')
    is_gemma = type(layer.input_layernorm).__name__.startswith('Gemma') if hasattr(layer, 'input_layernorm') else False
    if is_llama4:
        beta = read.attn_scale if attention.attn_temperature_tuning else 0
    else:
        beta = read.rope_parameters.get('llama_4_scaling_beta', 0)
    return {
        'spec': {
            'vocabSize': base.embed_tokens.weight.shape[0],
            'hiddenSize': base.embed_tokens.weight.shape[1],
            'intermediateSize': mlp.down_proj.weight.shape[1]
            if dense
            else getattr(read, 'intermediate_size_mlp', read.intermediate_size),
            'numLayers': len(base.layers),
            'numHeads': attention.o_proj.weight.shape[1] // attention.head_dim,
            'numKvHeads': read.num_attention_heads // attention.num_key_value_groups,
            'headDim': attention.head_dim,
            'rmsNormEps': base.norm.eps if is_gemma or is_llama4 else base.norm.variance_epsilon,
            'layerRopes': layer_ropes(read, base),
            'interleavedRope': is_llama4,  # it rotates complex numbers
            'slidingWindows': sliding_windows(read, base.layers),
            'chunkedWindows': is_llama4,
            'kvLayers': kv_layers(base.layers),
            'doubleWideMlps': has_double_wide_mlps(base.layers),
            'perLayerInputSize': getattr(base, 'hidden_size_per_layer_input', 0),
            'qkvBias': q.bias is not None,
            'outputBias': attention.o_proj.bias is not None,
            'mlpBias': dense and mlp.down_proj.bias is not None,
            'otherHeads': other_heads(read, base.layers),
            'qkNorm': qk_norm(attention),
            'valueNorm': hasattr(attention, 'v_norm'),
            'attentionSinks': hasattr(attention, 'sinks'),
            'activation': activation(mlp),
            'inputNorms': hasattr(layer, 'input_layernorm'),
            'outputNorms': hasattr(layer, 'post_feedforward_layernorm'),
            'layerScales': hasattr(layer, 'layer_scalar'),
            'normOffset': int(is_gemma and read.model_type != 'gemma4_text'),
            'embeddingScale': base.embed_tokens.scalar_embed_scale
            if is_gemma
            else getattr(base, 'embedding_multiplier', 1),
            'roundsEmbeddingScale': is_gemma,
            'attentionScale': attention.scaling,
            'queryScaleBeta': beta,
            'queryScalePeriod': read.floor_scale
            if is_llama4
            else read.rope_parameters['original_max_position_embeddings']
            if beta
            else 1,
            'queryScaleShift': int(is_llama4),
            'queryScaleUnrotatedOnly': is_llama4,
            'residualScale': getattr(layer, 'residual_multiplier', 1),
            'logitScale': 1 / getattr(read, 'logits_scaling', 1),
            'attentionSoftcap': getattr(attention, 'attn_logit_softcapping', None) or 0,
            'logitSoftcap': getattr(read, 'final_logit_softcapping', None) or 0,
            'tieWordEmbeddings': model.lm_head.weight is base.embed_tokens.weight,
            'experts': experts(read, base.layers),
        },
        'dtype': None if read.dtype is None else str(read.dtype).removeprefix('torch.'),
        'bosTokenId': read.bos_token_id,
        'eosTokenIds': [] if eos is None else eos if isinstance(eos, list) else [eos],
    }


def main():
    cases = [{'name': name, 'config': config, 'expected': expected(config)} for name, config in CASES.items()]
    path = Path(__file__).with_name('expected.json')
    path.write_text('[\n' + ',\n'.join(json.dumps(case) for case in cases) + '\n]\n')
    print(f'{len(cases)} cases in {path}')


if __name__ == '__main__':
    main()
