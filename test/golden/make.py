#!/usr/bin/env python3
"""Creates the golden checkpoints and the reference results of Hugging Face transformers for them.

    python test/golden/make.py              every family
    python test/golden/make.py qwen3 ...    some of them

Needs torch and transformers 5.17 (CPU). For each family it writes

    checkpoints/<name>/     a small random model, laid out as checkpoints are on the Hugging Face hub
    expected/<name>.json    tokens and logprobs, computed by transformers from that folder

and prints their robustness. config.json is written by hand, in the styles of transformers 4 and 5, and loaded
by transformers unchanged.

An expected file holds, for each prompt:

    float32   greedy continuation of GENERATED tokens, and one record per position of prompt + continuation except
              the first, all computed in float32
    bfloat16  the same records with the model loaded in that type; the sequence is the float32 one (teacher forcing)
    float16   likewise

A record has the model's prediction of the token at its position from the previous tokens:
{ logprob, rank, margin, top }: the token's logprob, its rank (1 is the largest), the distance of its logprob to the
nearest other one, and the TOP largest as [token id, logprob]. Half precision records omit rank and
margin.
"""

import copy
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import formats
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
GENERATED = 32
TOP = 5

# Scale of the logits: small enough that half precision rounding stays well below the tolerance of 3e-2 for our own
# logprobs, large enough for unambiguous greedy choices.
LOGIT_STD = 0.5

# Requirements on a seed's model.
MIN_GREEDY_GAP = 2e-3  # between the top two tokens of every greedy step, in float32
MIN_DISTINCT = 12  # distinct tokens among the GENERATED
MAX_RUN = 3  # longest repetition of one token
MAX_HALF_ERROR = 1.5e-2  # of transformers' own half precision logprobs, half of the 3e-2 allowed to ours
MAX_ROUTING_ERROR = 1.5e-2  # of logprobs, when the inputs of the routers are rounded otherwise: the other half
MAX_NOISE = 3e-5  # of float32 logprobs, between computations with and without a KV cache
MIN_EFFECT = 5e-2  # on some logprob when a feature of the family is ignored
HALF_TOLERANCE = 3e-2

# What two orders of bfloat16 rounding in the layers before leave of difference between a router's inputs, relative to
# their root mean square; and how many such differences a seed's model must withstand at every position.
ROUTER_NOISE = 1e-2
ROUTER_DRAWS = 32


@dataclass
class Family:
    name: str
    dtype: torch.dtype  # type of the stored weights
    config: dict  # contents of config.json
    rope: dict  # expected rope_parameters in transformers
    # Misreadings of config.json: each must change the logprobs, or the family proves nothing.
    misreadings: dict = field(default_factory=dict)
    generation_config: dict | None = None
    max_shard_size: int | None = None  # bytes
    weight_block_size: tuple[int, int] | None = None  # rows and columns per scale of an fp8 checkpoint
    format: str | None = None  # of formats.py
    prompt_lengths: tuple = (1, 17, 200)
    gains: dict = field(default_factory=dict)  # in place of those in random_tensors
    min_effect: float = MIN_EFFECT  # less where experts must be small, still far above the tolerance of float32


FAMILIES = [
    # Llama 2 as Meta published it: one key head for each query head, untied embeddings, plain rope.
    Family(
        name='llama2',
        dtype=torch.float32,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'hidden_act': 'silu',
            'hidden_size': 64,
            'initializer_range': 0.02,
            'intermediate_size': 172,
            'max_position_embeddings': 512,
            'model_type': 'llama',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 4,
            'pretraining_tp': 1,
            'rms_norm_eps': 1e-05,
            'rope_scaling': None,
            'rope_theta': 10000.0,
            'tie_word_embeddings': False,
            'torch_dtype': 'float32',
            'transformers_version': '4.31.0',
            'use_cache': True,
            'vocab_size': 320,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0},
        misreadings={'another rope_theta': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500000.0}}},
        generation_config={
            '_from_model_config': True,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'transformers_version': '4.31.0',
        },
    ),
    # Llama 3.2: grouped query heads, tied embeddings, llama3 rope. The frequencies of a head of 32 with an original
    # context of 64 fall on all three branches of that scaling.
    Family(
        name='llama3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 498,
            'eos_token_id': [499, 500],
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 96,
            'initializer_range': 0.02,
            'intermediate_size': 201,
            'max_position_embeddings': 512,
            'mlp_bias': False,
            'model_type': 'llama',
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'pretraining_tp': 1,
            'rms_norm_eps': 1e-05,
            'rope_scaling': {
                'factor': 8.0,
                'high_freq_factor': 4.0,
                'low_freq_factor': 1.0,
                'original_max_position_embeddings': 64,
                'rope_type': 'llama3',
            },
            'rope_theta': 500000.0,
            'tie_word_embeddings': True,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.45.0',
            'use_cache': True,
            'vocab_size': 501,
        },
        rope={
            'rope_type': 'llama3',
            'rope_theta': 500000.0,
            'factor': 8.0,
            'high_freq_factor': 4.0,
            'low_freq_factor': 1.0,
            'original_max_position_embeddings': 64,
        },
        misreadings={'no rope scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500000.0}}},
        generation_config={
            'bos_token_id': 498,
            'do_sample': True,
            'eos_token_id': [499, 500],
            'temperature': 0.6,
            'top_p': 0.9,
            'transformers_version': '4.45.0',
        },
    ),
    # Linear rope in the style of transformers 5, the weights in several files. One key head for all query heads.
    Family(
        name='llama-linear',
        dtype=torch.float16,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'dtype': 'float16',
            'eos_token_id': 2,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 64,
            'initializer_range': 0.02,
            'intermediate_size': 150,
            'max_position_embeddings': 512,
            'mlp_bias': False,
            'model_type': 'llama',
            'num_attention_heads': 2,
            'num_hidden_layers': 3,
            'num_key_value_heads': 1,
            'pad_token_id': None,
            'pretraining_tp': 1,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {'factor': 4.0, 'rope_theta': 10000.0, 'rope_type': 'linear'},
            'tie_word_embeddings': False,
            'transformers_version': '5.17.0',
            'use_cache': True,
            'vocab_size': 300,
        },
        rope={'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 4.0},
        misreadings={'no rope scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0}}},
        max_shard_size=100_000,
    ),
    # Eight heads and two key heads: with more than two ranks, ranks hold copies of key heads.
    # The vocabulary is not divisible by any number of ranks.
    Family(
        name='llama-grouped',
        dtype=torch.bfloat16,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'dtype': 'bfloat16',
            'eos_token_id': 2,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 72,
            'initializer_range': 0.02,
            'intermediate_size': 136,
            'max_position_embeddings': 512,
            'mlp_bias': False,
            'model_type': 'llama',
            'num_attention_heads': 8,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'pad_token_id': None,
            'pretraining_tp': 1,
            'rms_norm_eps': 1e-05,
            'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'default'},
            'tie_word_embeddings': False,
            'transformers_version': '5.17.0',
            'use_cache': True,
            'vocab_size': 307,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0},
        misreadings={'another rope_theta': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500000.0}}},
    ),
    # Every linear layer with a bias, and the oldest spelling of rope scaling: `type` in place of `rope_type`.
    Family(
        name='llama-bias',
        dtype=torch.float32,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': True,
            'bos_token_id': 0,
            'eos_token_id': 0,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 101,
            'max_position_embeddings': 512,
            'mlp_bias': True,
            'model_type': 'llama',
            'num_attention_heads': 3,
            'num_hidden_layers': 2,
            'num_key_value_heads': 3,
            'rms_norm_eps': 1e-06,
            'rope_scaling': {'factor': 2.0, 'type': 'linear'},
            'rope_theta': 100000,
            'tie_word_embeddings': True,
            'torch_dtype': 'float32',
            'transformers_version': '4.40.0',
            'use_cache': True,
            'vocab_size': 257,
        },
        rope={'rope_type': 'linear', 'rope_theta': 100000, 'factor': 2.0},
        misreadings={'no rope scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 100000}}},
    ),
    # YaRN in the style of transformers 5. With these betas the ramp between the two frequencies lies inside the head.
    Family(
        name='llama-yarn',
        dtype=torch.float32,
        config={
            'architectures': ['LlamaForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'dtype': 'float32',
            'eos_token_id': 2,
            'head_dim': 64,
            'hidden_act': 'silu',
            'hidden_size': 60,
            'initializer_range': 0.02,
            'intermediate_size': 130,
            'max_position_embeddings': 256,
            'mlp_bias': False,
            'model_type': 'llama',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 1,
            'pad_token_id': None,
            'pretraining_tp': 1,
            'rms_norm_eps': 1e-05,
            'rope_parameters': {
                'beta_fast': 4.0,
                'beta_slow': 1.0,
                'factor': 4.0,
                'original_max_position_embeddings': 64,
                'rope_theta': 10000.0,
                'rope_type': 'yarn',
            },
            'tie_word_embeddings': False,
            'transformers_version': '5.17.0',
            'use_cache': True,
            'vocab_size': 333,
        },
        rope={
            'rope_type': 'yarn',
            'rope_theta': 10000.0,
            'factor': 4.0,
            'original_max_position_embeddings': 64,
            'beta_fast': 4.0,
            'beta_slow': 1.0,
        },
        misreadings={
            'no rope scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0}},
            'no attention factor': {
                'rope_parameters': {
                    'rope_type': 'yarn',
                    'rope_theta': 10000.0,
                    'factor': 4.0,
                    'original_max_position_embeddings': 64,
                    'beta_fast': 4.0,
                    'beta_slow': 1.0,
                    'attention_factor': 1.0,
                }
            },
            'default betas': {
                'rope_parameters': {
                    'rope_type': 'yarn',
                    'rope_theta': 10000.0,
                    'factor': 4.0,
                    'original_max_position_embeddings': 64,
                }
            },
            'original context from max_position_embeddings': {
                'rope_parameters': {
                    'rope_type': 'yarn',
                    'rope_theta': 10000.0,
                    'factor': 4.0,
                    'original_max_position_embeddings': 256,
                    'beta_fast': 4.0,
                    'beta_slow': 1.0,
                }
            },
        },
    ),
    # YaRN enabled as in the Qwen2.5 model cards: an addition to the transformers 4 style, with
    # `type`, max_position_embeddings left at the original context, and betas by default. Prompts go beyond that.
    Family(
        name='qwen2-yarn',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Qwen2ForCausalLM'],
            'attention_dropout': 0.0,
            'bos_token_id': 396,
            'eos_token_id': 397,
            'hidden_act': 'silu',
            'hidden_size': 64,
            'initializer_range': 0.02,
            'intermediate_size': 140,
            'max_position_embeddings': 128,
            'max_window_layers': 2,
            'model_type': 'qwen2',
            'num_attention_heads': 2,
            'num_hidden_layers': 2,
            'num_key_value_heads': 1,
            'rms_norm_eps': 1e-06,
            'rope_scaling': {'factor': 4.0, 'original_max_position_embeddings': 128, 'type': 'yarn'},
            'rope_theta': 1000000.0,
            'sliding_window': 128,
            'tie_word_embeddings': True,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.43.1',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 400,
        },
        rope={
            'rope_type': 'yarn',
            'rope_theta': 1000000.0,
            'factor': 4.0,
            'original_max_position_embeddings': 128,
        },
        misreadings={
            'no rope scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1000000.0}},
            'linear': {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 1000000.0, 'factor': 4.0}},
        },
    ),
    # Mistral 7B v0.1: every layer has a sliding window, here of 64 tokens including the current one.
    Family(
        name='mistral',
        dtype=torch.bfloat16,
        config={
            'architectures': ['MistralForCausalLM'],
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'head_dim': 64,
            'hidden_act': 'silu',
            'hidden_size': 80,
            'initializer_range': 0.02,
            'intermediate_size': 180,
            'max_position_embeddings': 1024,
            'model_type': 'mistral',
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'rms_norm_eps': 1e-05,
            'rope_theta': 10000.0,
            'sliding_window': 64,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.34.0',
            'use_cache': True,
            'vocab_size': 300,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0},
        misreadings={
            'no window': {'sliding_window': None},
            'a window one shorter': {'sliding_window': 63},
            'a window one longer': {'sliding_window': 65},
        },
        generation_config={
            '_from_model_config': True,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'transformers_version': '4.34.0',
        },
        prompt_lengths=(1, 17, 64, 200, 450),
    ),
    # Qwen2: biases on Q, K and V, tied embeddings. use_sliding_window disables sliding_window.
    Family(
        name='qwen2',
        dtype=torch.float32,
        config={
            'architectures': ['Qwen2ForCausalLM'],
            'attention_dropout': 0.0,
            'bos_token_id': 396,
            'eos_token_id': 398,
            'hidden_act': 'silu',
            'hidden_size': 64,
            'initializer_range': 0.02,
            'intermediate_size': 140,
            'max_position_embeddings': 512,
            'max_window_layers': 1,
            'model_type': 'qwen2',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'rms_norm_eps': 1e-06,
            'rope_theta': 1000000.0,
            'sliding_window': 64,
            'tie_word_embeddings': True,
            'torch_dtype': 'float32',
            'transformers_version': '4.40.1',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 400,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000.0},
        misreadings={
            'the window applied': {
                'use_sliding_window': True,
                'sliding_window': 64,
                'layer_types': ['full_attention', 'sliding_attention'],
            }
        },
        generation_config={
            'bos_token_id': 396,
            'do_sample': True,
            'eos_token_id': [398, 396],
            'pad_token_id': 396,
            'repetition_penalty': 1.1,
            'temperature': 0.7,
            'top_k': 20,
            'top_p': 0.8,
            'transformers_version': '4.40.1',
        },
    ),
    # Qwen3 in the style of transformers 5: Q and K normed per head, heads wider than hidden size / heads.
    Family(
        name='qwen3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Qwen3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 306,
            'dtype': 'bfloat16',
            'eos_token_id': 308,
            'head_dim': 64,
            'hidden_act': 'silu',
            'hidden_size': 72,
            'initializer_range': 0.02,
            'intermediate_size': 165,
            'layer_types': ['full_attention', 'full_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'max_window_layers': 3,
            'model_type': 'qwen3',
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 1,
            'pad_token_id': None,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {'rope_theta': 1000000.0, 'rope_type': 'default'},
            'sliding_window': None,
            'tie_word_embeddings': False,
            'transformers_version': '5.17.0',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 311,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000.0},
        misreadings={'the theta of Llama 2': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0}}},
        generation_config={
            'bos_token_id': 306,
            'do_sample': True,
            'eos_token_id': [308, 306],
            'pad_token_id': 306,
            'temperature': 0.6,
            'top_k': 20,
            'top_p': 0.95,
            'transformers_version': '5.17.0',
        },
    ),
    # Qwen3 with experts in two of three layers: the router's two of eight, their weights scaled to a sum of 1.
    Family(
        name='qwen3-moe',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Qwen3MoeForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 306,
            'decoder_sparse_step': 1,
            'eos_token_id': 308,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'max_position_embeddings': 512,
            'max_window_layers': 3,
            'mlp_only_layers': [1],
            'model_type': 'qwen3_moe',
            'moe_intermediate_size': 36,
            'norm_topk_prob': True,
            'num_attention_heads': 4,
            'num_experts': 8,
            'num_experts_per_tok': 2,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'output_router_logits': False,
            'rms_norm_eps': 1e-06,
            'rope_scaling': None,
            'rope_theta': 1000000.0,
            'router_aux_loss_coef': 0.001,
            'sliding_window': None,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.51.0',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 311,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000.0},
        misreadings={
            'weights that do not sum to 1': {'norm_topk_prob': False},
            'one expert more': {'num_experts_per_tok': 3},
        },
        prompt_lengths=(1, 17, 60),
    ),
    # Qwen3 like its fp8 checkpoints, except for the block size, which divides neither heads nor layers.
    Family(
        name='qwen3-fp8',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Qwen3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 306,
            'eos_token_id': 308,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 80,
            'initializer_range': 0.02,
            'intermediate_size': 164,
            'max_position_embeddings': 512,
            'max_window_layers': 2,
            'model_type': 'qwen3',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'quantization_config': {
                'activation_scheme': 'dynamic',
                'fmt': 'e4m3',
                'modules_to_not_convert': ['lm_head', 'model.layers.1.self_attn.o_proj'],
                'quant_method': 'fp8',
                'weight_block_size': [48, 24],
            },
            'rms_norm_eps': 1e-06,
            'rope_scaling': None,
            'rope_theta': 1000000,
            'sliding_window': None,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.51.0',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 311,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000},
        weight_block_size=(48, 24),
    ),
    # Phi-3 mini with its window: q, k and v in one tensor, gate and up in another.
    Family(
        name='phi3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Phi3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'embd_pdrop': 0.0,
            'eos_token_id': 300,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'max_position_embeddings': 512,
            'model_type': 'phi3',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 4,
            'original_max_position_embeddings': 512,
            'pad_token_id': 300,
            'resid_pdrop': 0.0,
            'rms_norm_eps': 1e-05,
            'rope_scaling': None,
            'rope_theta': 10000.0,
            'sliding_window': 23,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.40.2',
            'use_cache': True,
            'vocab_size': 306,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0, 'partial_rotary_factor': 1.0},
        misreadings={'no window': {'sliding_window': None}, 'a window one longer': {'sliding_window': 24}},
        prompt_lengths=(1, 17, 100),
    ),
    # Phi-4 mini: grouped heads, three quarters of each rotated, longrope beyond the original context.
    Family(
        name='phi4-mini',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Phi3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': 301,
            'embd_pdrop': 0.0,
            'eos_token_id': 301,
            'full_attn_mod': 1,
            'hidden_act': 'silu',
            'hidden_size': 64,
            'initializer_range': 0.02,
            'intermediate_size': 72,
            'interpolate_factor': 1,
            'lm_head_bias': False,
            'max_position_embeddings': 512,
            'mlp_bias': False,
            'model_type': 'phi3',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'original_max_position_embeddings': 16,
            'pad_token_id': 301,
            'partial_rotary_factor': 0.75,
            'resid_pdrop': 0.0,
            'rms_norm_eps': 1e-05,
            'rope_scaling': {
                'long_factor': [1.0, 1.2, 3.4, 7.8, 17.5, 29.0],
                'short_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0],
                'type': 'longrope',
            },
            'rope_theta': 10000.0,
            'sliding_window': 262144,
            'tie_word_embeddings': True,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.45.0',
            'use_cache': True,
            'vocab_size': 306,
        },
        rope={
            'rope_type': 'longrope',
            'rope_theta': 10000.0,
            'partial_rotary_factor': 0.75,
            'long_factor': [1.0, 1.2, 3.4, 7.8, 17.5, 29.0],
            'short_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0],
            'original_max_position_embeddings': 16,
        },
        misreadings={
            'the short factors': {
                'rope_parameters': {
                    'rope_type': 'longrope',
                    'rope_theta': 10000.0,
                    'partial_rotary_factor': 0.75,
                    'long_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0],
                    'short_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0],
                    'original_max_position_embeddings': 16,
                }
            },
            'no attention factor': {
                'rope_parameters': {
                    'rope_type': 'longrope',
                    'rope_theta': 10000.0,
                    'partial_rotary_factor': 0.75,
                    'long_factor': [1.0, 1.2, 3.4, 7.8, 17.5, 29.0],
                    'short_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0],
                    'original_max_position_embeddings': 16,
                    'attention_factor': 1.0,
                }
            },
            'whole heads rotated': {
                'rope_parameters': {
                    'rope_type': 'longrope',
                    'rope_theta': 10000.0,
                    'partial_rotary_factor': 1.0,
                    'long_factor': [1.0, 1.2, 3.4, 7.8, 17.5, 29.0, 29.0, 29.0],
                    'short_factor': [1.0, 1.0, 1.1, 1.3, 1.7, 2.0, 2.0, 2.0],
                    'original_max_position_embeddings': 16,
                }
            },
        },
        prompt_lengths=(17, 33, 100),  # of which every one is beyond the original context
    ),
    # SmolLM3: a layer without rotary embedding, which here has the window too.
    Family(
        name='smollm3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['SmolLM3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': None,
            'dtype': 'bfloat16',
            'eos_token_id': 302,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 56,
            'layer_types': ['full_attention', 'sliding_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'max_window_layers': 28,
            'mlp_bias': False,
            'model_type': 'smollm3',
            'no_rope_layer_interval': 2,
            'no_rope_layers': [1, 0, 1],
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'pad_token_id': 303,
            'pretraining_tp': 2,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {'rope_theta': 5000000.0, 'rope_type': 'default'},
            'sliding_window': 48,
            'tie_word_embeddings': True,
            'transformers_version': '5.17.0',
            'use_cache': True,
            'use_sliding_window': True,
            'vocab_size': 310,
        },
        rope={'rope_type': 'default', 'rope_theta': 5000000.0},
        misreadings={
            'rotary embedding in every layer': {'no_rope_layers': [1, 1, 1]},
            'no window': {'use_sliding_window': False, 'layer_types': ['full_attention'] * 3},
        },
        prompt_lengths=(1, 17, 100),
    ),
    # Granite 3: scales of embeddings, attention, residuals and logits.
    Family(
        name='granite',
        dtype=torch.bfloat16,
        config={
            'architectures': ['GraniteForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attention_multiplier': 0.125,
            'bos_token_id': 0,
            'embedding_multiplier': 3.0,
            'eos_token_id': 0,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'logits_scaling': 2.0,
            'max_position_embeddings': 512,
            'mlp_bias': False,
            'model_type': 'granite',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'pad_token_id': 0,
            'residual_multiplier': 0.8,
            'rms_norm_eps': 1e-05,
            'rope_scaling': None,
            'rope_theta': 10000.0,
            'tie_word_embeddings': True,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.47.0',
            'use_cache': True,
            'vocab_size': 309,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0},
        misreadings={
            'embeddings not scaled': {'embedding_multiplier': 1.0},
            'attention scaled by the size of heads': {'attention_multiplier': 0.25},
            'residuals not scaled': {'residual_multiplier': 1.0},
            'logits not scaled': {'logits_scaling': 1.0},
        },
        prompt_lengths=(1, 17, 100),
    ),
    # OLMo 2: norms after attention and MLP alone, and of the whole projections of q and k.
    Family(
        name='olmo2',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Olmo2ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'eos_token_id': 300,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'max_position_embeddings': 512,
            'model_type': 'olmo2',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'pad_token_id': 301,
            'rms_norm_eps': 1e-06,
            'rope_scaling': None,
            'rope_theta': 500000,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.47.0',
            'use_cache': True,
            'vocab_size': 307,
        },
        rope={'rope_type': 'default', 'rope_theta': 500000},
        prompt_lengths=(1, 17, 100),
    ),
    # OLMo 3: OLMo 2 with windows, and YaRN in the layer without.
    Family(
        name='olmo3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Olmo3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'bos_token_id': None,
            'dtype': 'bfloat16',
            'eos_token_id': 240,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 48,
            'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'model_type': 'olmo3',
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 4,
            'pad_token_id': 241,
            'rms_norm_eps': 1e-06,
            'rope_scaling': {
                'attention_factor': 1.2,
                'beta_fast': 4.0,
                'beta_slow': 1.0,
                'factor': 8.0,
                'original_max_position_embeddings': 64,
                'rope_type': 'yarn',
            },
            'rope_theta': 500000,
            'sliding_window': 40,
            'tie_word_embeddings': False,
            'transformers_version': '4.57.0',
            'use_cache': False,
            'vocab_size': 250,
        },
        rope={
            'full_attention': {
                'rope_type': 'yarn',
                'rope_theta': 500000,
                'factor': 8.0,
                'original_max_position_embeddings': 64,
                'attention_factor': 1.2,
                'beta_fast': 4.0,
                'beta_slow': 1.0,
            },
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 500000.0},
        },
        misreadings={
            'no window': {'sliding_window': 512},
            'no scaling': {
                'rope_parameters': {
                    'full_attention': {'rope_type': 'default', 'rope_theta': 500000},
                    'sliding_attention': {'rope_type': 'default', 'rope_theta': 500000},
                }
            },
            'scaling in every layer': {
                'rope_parameters': {
                    kind: {
                        'rope_type': 'yarn',
                        'rope_theta': 500000,
                        'factor': 8.0,
                        'original_max_position_embeddings': 64,
                        'attention_factor': 1.2,
                        'beta_fast': 4.0,
                        'beta_slow': 1.0,
                    }
                    for kind in ('full_attention', 'sliding_attention')
                }
            },
        },
        prompt_lengths=(1, 17, 100),
    ),
    # Gemma 2: capped scores and logits, norms around both blocks, a window in every other layer.
    Family(
        name='gemma2',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma2ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attn_logit_softcapping': 0.8,
            'bos_token_id': 2,
            'cache_implementation': 'hybrid',
            'eos_token_id': 1,
            'final_logit_softcapping': 1.5,
            'head_dim': 16,
            'hidden_act': 'gelu_pytorch_tanh',
            'hidden_activation': 'gelu_pytorch_tanh',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 72,
            'max_position_embeddings': 512,
            'model_type': 'gemma2',
            'num_attention_heads': 4,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'pad_token_id': 0,
            'query_pre_attn_scalar': 9,
            'rms_norm_eps': 1e-06,
            'rope_theta': 10000.0,
            'sliding_window': 40,
            'sliding_window_size': 40,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.42.0.dev0',
            'use_cache': True,
            'vocab_size': 310,
        },
        rope={'rope_type': 'default', 'rope_theta': 10000.0},
        misreadings={
            'no cap on scores': {'attn_logit_softcapping': None},
            'no cap on logits': {'final_logit_softcapping': None},
            "the head's own scale": {'query_pre_attn_scalar': 16},
            'no window': {'sliding_window': 512},
            'windows in the other layers': {'layer_types': ['full_attention', 'sliding_attention']},
            'SiLU': {'hidden_activation': 'silu'},
        },
        prompt_lengths=(1, 17, 100),
    ),
    # Gemma 3: norms of queries and keys, and a rotary embedding of its own in the layers with a window.
    Family(
        name='gemma3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma3ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attn_logit_softcapping': None,
            'bos_token_id': 2,
            'cache_implementation': 'hybrid',
            'eos_token_id': [1, 106],
            'final_logit_softcapping': None,
            'head_dim': 32,
            'hidden_activation': 'gelu_pytorch_tanh',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 72,
            'max_position_embeddings': 512,
            'model_type': 'gemma3_text',
            'num_attention_heads': 4,
            'num_hidden_layers': 3,
            'num_key_value_heads': 1,
            'pad_token_id': 0,
            'query_pre_attn_scalar': 64,
            'rms_norm_eps': 1e-06,
            'rope_local_base_freq': 100,
            'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
            'rope_theta': 20000,
            'sliding_window': 32,
            'sliding_window_pattern': 3,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.50.0.dev0',
            'use_cache': True,
            'vocab_size': 320,
        },
        rope={
            'full_attention': {'rope_type': 'linear', 'rope_theta': 20000.0, 'factor': 8.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
        },
        misreadings={
            'no window': {'sliding_window': 512},
            'windows in every layer': {'layer_types': ['sliding_attention'] * 3},
            "the head's own scale": {'query_pre_attn_scalar': 32},
            'no scaling': {
                'rope_parameters': {
                    'full_attention': {'rope_type': 'default', 'rope_theta': 20000},
                    'sliding_attention': {'rope_type': 'default', 'rope_theta': 100},
                }
            },
            'one base': {
                'rope_parameters': {
                    'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 20000},
                    'sliding_attention': {'rope_type': 'default', 'rope_theta': 20000},
                }
            },
        },
        prompt_lengths=(1, 17, 100),
    ),
    # Gemma 3 as published with its vision tower, with the rotary embeddings of transformers 5.
    Family(
        name='gemma3-multimodal',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma3ForConditionalGeneration'],
            'boi_token_index': 255,
            'dtype': 'bfloat16',
            'eoi_token_index': 256,
            'eos_token_id': [1, 106],
            'image_token_index': 262,
            'initializer_range': 0.02,
            'mm_tokens_per_image': 4,
            'model_type': 'gemma3',
            'text_config': {
                'head_dim': 16,
                'hidden_size': 48,
                'intermediate_size': 64,
                'layer_types': ['sliding_attention', 'full_attention'],
                'max_position_embeddings': 512,
                'model_type': 'gemma3_text',
                'num_attention_heads': 4,
                'num_hidden_layers': 2,
                'num_key_value_heads': 2,
                'query_pre_attn_scalar': 16,
                'rope_parameters': {
                    'full_attention': {'factor': 4.0, 'rope_theta': 30000.0, 'rope_type': 'linear'},
                    'sliding_attention': {'rope_theta': 500.0, 'rope_type': 'default'},
                },
                'sliding_window': 24,
                'vocab_size': 305,
            },
            'transformers_version': '5.0.0',
            'vision_config': {'hidden_size': 16, 'model_type': 'siglip_vision_model', 'num_hidden_layers': 1},
        },
        rope={
            'full_attention': {'factor': 4.0, 'rope_theta': 30000.0, 'rope_type': 'linear'},
            'sliding_attention': {'rope_theta': 500.0, 'rope_type': 'default'},
        },
        misreadings={
            'no window': {'sliding_window': 512},
            'windows in the other layers': {'layer_types': ['full_attention', 'sliding_attention']},
            'no scaling': {
                'rope_parameters': {
                    'full_attention': {'rope_theta': 30000.0, 'rope_type': 'default'},
                    'sliding_attention': {'rope_theta': 500.0, 'rope_type': 'default'},
                }
            },
        },
        prompt_lengths=(1, 17, 100),
    ),
    # gpt-oss in bfloat16: sinks, a window in every other layer, stacked and transposed experts with biases.
    Family(
        name='gpt-oss',
        dtype=torch.bfloat16,
        config={
            'architectures': ['GptOssForCausalLM'],
            'attention_bias': True,
            'attention_dropout': 0.0,
            'eos_token_id': 202,
            'experts_per_token': 2,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initial_context_length': 64,
            'initializer_range': 0.02,
            'intermediate_size': 24,
            'layer_types': ['sliding_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'model_type': 'gpt_oss',
            'num_attention_heads': 4,
            'num_experts_per_tok': 2,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'num_local_experts': 8,
            'output_router_logits': False,
            'pad_token_id': 199,
            'rms_norm_eps': 1e-05,
            'rope_scaling': {
                'beta_fast': 4.0,
                'beta_slow': 1.0,
                'factor': 8.0,
                'original_max_position_embeddings': 64,
                'rope_type': 'yarn',
                'truncate': False,
            },
            'rope_theta': 150000,
            'router_aux_loss_coef': 0.9,
            'sliding_window': 32,
            'swiglu_limit': 7.0,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.55.0.dev0',
            'use_cache': True,
            'vocab_size': 210,
        },
        rope={
            'beta_fast': 4.0,
            'beta_slow': 1.0,
            'factor': 8.0,
            'original_max_position_embeddings': 64,
            'rope_theta': 150000,
            'rope_type': 'yarn',
            'truncate': False,
        },
        misreadings={
            'no window': {'sliding_window': 512},
            'windows in the other layers': {'layer_types': ['full_attention', 'sliding_attention']},
            'no scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 150000}},
            'one expert per token': {'num_experts_per_tok': 1},
        },
        prompt_lengths=(1, 17, 60),
    ),
    # GLM-4.5: sigmoid routing in groups with a bias, a shared expert, dense first layers, norms of queries and keys.
    Family(
        name='glm4-moe',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Glm4MoeForCausalLM'],
            'attention_bias': True,
            'attention_dropout': 0.0,
            'eos_token_id': [251, 252],
            'first_k_dense_replace': 1,
            'head_dim': 32,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'max_position_embeddings': 512,
            'model_type': 'glm4_moe',
            'moe_intermediate_size': 20,
            'n_group': 4,
            'n_routed_experts': 16,
            'n_shared_experts': 2,
            'norm_topk_prob': True,
            'num_attention_heads': 4,
            'num_experts_per_tok': 3,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'num_nextn_predict_layers': 1,
            'pad_token_id': 250,
            'partial_rotary_factor': 0.5,
            'rms_norm_eps': 1e-05,
            'rope_scaling': None,
            'rope_theta': 10000,
            'routed_scaling_factor': 2.5,
            'tie_word_embeddings': False,
            'topk_group': 2,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.54.0',
            'use_cache': True,
            'use_qk_norm': True,
            'vocab_size': 260,
        },
        rope={'partial_rotary_factor': 0.5, 'rope_theta': 10000, 'rope_type': 'default'},
        misreadings={
            'one group': {'n_group': 1, 'topk_group': 1},
            'every group': {'topk_group': 4},
            'no scale of the weights': {'routed_scaling_factor': 1.0},
            'weights not normalized': {'norm_topk_prob': False},
            'two experts per token': {'num_experts_per_tok': 2},
            'whole rotation': {
                'rope_parameters': {'partial_rotary_factor': 1.0, 'rope_theta': 10000, 'rope_type': 'default'}
            },
        },
        prompt_lengths=(1, 17, 60),
        # Chosen experts have comparable weights, so near ties must be rare and have little effect (routing_error): the
        # spread of the biases is a few times that of the sigmoids, and experts add little.
        gains={'gate': 1.0, 'e_score_correction_bias': 0.6, 'experts': 0.052},
    ),
    # Mixtral: experts in every layer, under names of its own.
    Family(
        name='mixtral-moe',
        dtype=torch.bfloat16,
        config={
            'architectures': ['MixtralForCausalLM'],
            'attention_dropout': 0.0,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'hidden_act': 'silu',
            'hidden_size': 32,
            'initializer_range': 0.02,
            'intermediate_size': 24,
            'max_position_embeddings': 512,
            'model_type': 'mixtral',
            'num_attention_heads': 4,
            'num_experts_per_tok': 2,
            'num_hidden_layers': 2,
            'num_key_value_heads': 2,
            'num_local_experts': 8,
            'output_router_logits': False,
            'rms_norm_eps': 1e-05,
            'rope_theta': 1000000.0,
            'router_aux_loss_coef': 0.02,
            'sliding_window': None,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.36.0',
            'use_cache': True,
            'vocab_size': 300,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000.0},
        misreadings={'one expert more': {'num_experts_per_tok': 3}},
        prompt_lengths=(1, 17, 60),
    ),
    # Qwen1.5-MoE: a shared expert with a gate, weights that do not sum to 1, biases on q, k and v.
    Family(
        name='qwen2-moe',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Qwen2MoeForCausalLM'],
            'attention_dropout': 0.0,
            'bos_token_id': 306,
            'decoder_sparse_step': 1,
            'eos_token_id': 306,
            'hidden_act': 'silu',
            'hidden_size': 32,
            'initializer_range': 0.02,
            'intermediate_size': 80,
            'max_position_embeddings': 512,
            'max_window_layers': 21,
            'model_type': 'qwen2_moe',
            'moe_intermediate_size': 16,
            'norm_topk_prob': False,
            'num_attention_heads': 4,
            'num_experts': 8,
            'num_experts_per_tok': 2,
            'num_hidden_layers': 2,
            'num_key_value_heads': 4,
            'output_router_logits': False,
            'rms_norm_eps': 1e-06,
            'rope_theta': 1000000.0,
            'router_aux_loss_coef': 0.001,
            'shared_expert_intermediate_size': 56,
            'sliding_window': 64,
            'tie_word_embeddings': False,
            'torch_dtype': 'bfloat16',
            'transformers_version': '4.39.0',
            'use_cache': True,
            'use_sliding_window': False,
            'vocab_size': 311,
        },
        rope={'rope_type': 'default', 'rope_theta': 1000000.0},
        misreadings={
            'weights that sum to 1': {'norm_topk_prob': True},
            'one expert more': {'num_experts_per_tok': 3},
        },
        prompt_lengths=(1, 17, 60),
    ),
    # Mistral 3 with the text model of Ministral 3: YaRN, and queries scaled by their position.
    Family(
        name='mistral3',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Mistral3ForConditionalGeneration'],
            'dtype': 'bfloat16',
            'image_token_index': 10,
            'model_type': 'mistral3',
            'multimodal_projector_bias': False,
            'projector_hidden_act': 'gelu',
            'spatial_merge_size': 2,
            'text_config': {
                'attention_dropout': 0.0,
                'head_dim': 16,
                'hidden_act': 'silu',
                'hidden_size': 48,
                'initializer_range': 0.02,
                'intermediate_size': 80,
                'max_position_embeddings': 512,
                'model_type': 'ministral3',
                'num_attention_heads': 4,
                'num_hidden_layers': 2,
                'num_key_value_heads': 2,
                'rms_norm_eps': 1e-05,
                'rope_parameters': {
                    'beta_fast': 4.0,
                    'beta_slow': 1.0,
                    'factor': 16.0,
                    'llama_4_scaling_beta': 0.4,
                    'mscale': 1.0,
                    'mscale_all_dim': 1.0,
                    'original_max_position_embeddings': 32,
                    'rope_theta': 1000000.0,
                    'rope_type': 'yarn',
                },
                'sliding_window': None,
                'tie_word_embeddings': True,
                'use_cache': True,
                'vocab_size': 305,
            },
            'transformers_version': '5.0.0',
            'vision_config': {'hidden_size': 16, 'model_type': 'pixtral', 'num_hidden_layers': 1},
            'vision_feature_layer': -1,
        },
        rope={
            'beta_fast': 4.0,
            'beta_slow': 1.0,
            'factor': 16.0,
            'llama_4_scaling_beta': 0.4,
            'mscale': 1.0,
            'mscale_all_dim': 1.0,
            'original_max_position_embeddings': 32,
            'rope_theta': 1000000.0,
            'rope_type': 'yarn',
        },
        misreadings={
            label: {
                'rope_parameters': {
                    'beta_fast': 4.0,
                    'beta_slow': 1.0,
                    'factor': 16.0,
                    'llama_4_scaling_beta': 0.4,
                    'mscale': 1.0,
                    'mscale_all_dim': 1.0,
                    'original_max_position_embeddings': 32,
                    'rope_theta': 1000000.0,
                    'rope_type': 'yarn',
                }
                | changes
            }
            for label, changes in {
                'one temperature': {'llama_4_scaling_beta': 0.0},
                "YaRN's own attention factor": {'mscale_all_dim': None},
            }.items()
        },
        prompt_lengths=(1, 17, 100),
    ),
    # Gemma 4, dense: heads of another size and number in the layers without a window, whose keys are their values.
    Family(
        name='gemma4',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma4ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attention_k_eq_v': True,
            'bos_token_id': 2,
            'dtype': 'bfloat16',
            'enable_moe_block': False,
            'eos_token_id': [1, 106],
            'expert_intermediate_size': None,
            'final_logit_softcapping': 1.5,
            'global_head_dim': 32,
            'head_dim': 16,
            'hidden_activation': 'gelu_pytorch_tanh',
            'hidden_size': 48,
            'hidden_size_per_layer_input': 0,
            'initializer_range': 0.02,
            'intermediate_size': 72,
            'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'model_type': 'gemma4_text',
            'num_attention_heads': 4,
            'num_experts': None,
            'num_global_key_value_heads': 1,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'num_kv_shared_layers': 0,
            'pad_token_id': 0,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {
                'full_attention': {
                    'partial_rotary_factor': 0.25,
                    'rope_theta': 1000.0,
                    'rope_type': 'proportional',
                },
                'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
            },
            'sliding_window': 24,
            'tie_word_embeddings': True,
            'top_k_experts': None,
            'transformers_version': '5.5.0.dev0',
            'use_bidirectional_attention': 'vision',
            'use_cache': True,
            'use_double_wide_mlp': False,
            'vocab_size': 260,
            'vocab_size_per_layer_input': 260,
        },
        rope={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        misreadings={
            'no cap on logits': {'final_logit_softcapping': None},
            'no window': {'sliding_window': 512},
            'rotations of the whole heads': {
                'rope_parameters': {
                    'full_attention': {'rope_theta': 1000.0, 'rope_type': 'default'},
                    'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
                }
            },
            'SiLU': {'hidden_activation': 'silu'},
        },
        prompt_lengths=(1, 17, 60),
        gains={'q_norm': 0.4, 'k_norm': 0.4},
    ),
    # Gemma 4 with experts beside the MLP, each with norms of its own: a router with a norm and scales of the experts.
    Family(
        name='gemma4-moe',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma4ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attention_k_eq_v': True,
            'bos_token_id': 2,
            'dtype': 'bfloat16',
            'enable_moe_block': True,
            'eos_token_id': [1, 106],
            'final_logit_softcapping': 1.5,
            'global_head_dim': 32,
            'head_dim': 16,
            'hidden_activation': 'gelu_pytorch_tanh',
            'hidden_size': 48,
            'hidden_size_per_layer_input': 0,
            'initializer_range': 0.02,
            'intermediate_size': 72,
            'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
            'max_position_embeddings': 512,
            'model_type': 'gemma4_text',
            'moe_intermediate_size': 24,
            'num_attention_heads': 4,
            'num_experts': 8,
            'num_global_key_value_heads': 1,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'num_kv_shared_layers': 0,
            'pad_token_id': 0,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {
                'full_attention': {
                    'partial_rotary_factor': 0.25,
                    'rope_theta': 1000.0,
                    'rope_type': 'proportional',
                },
                'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
            },
            'sliding_window': 24,
            'tie_word_embeddings': True,
            'top_k_experts': 2,
            'transformers_version': '5.5.0.dev0',
            'use_bidirectional_attention': 'vision',
            'use_cache': True,
            'use_double_wide_mlp': False,
            'vocab_size': 260,
            'vocab_size_per_layer_input': 260,
        },
        rope={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        misreadings={
            'another activation': {'hidden_activation': 'silu'},
        },
        prompt_lengths=(1, 17, 60),
        gains={'q_norm': 0.4, 'k_norm': 0.4, 'proj': 40.0, 'post_feedforward_layernorm_2': 0.035},
        min_effect=2e-2,
    ),
    # Gemma 4 E2B and E4B: embeddings by layer, and last layers with an earlier layer's keys and values and a wider MLP.
    Family(
        name='gemma4-e',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Gemma4ForCausalLM'],
            'attention_bias': False,
            'attention_dropout': 0.0,
            'attention_k_eq_v': False,
            'bos_token_id': 2,
            'dtype': 'bfloat16',
            'enable_moe_block': False,
            'eos_token_id': [1, 106],
            'final_logit_softcapping': 1.5,
            'global_head_dim': 32,
            'head_dim': 16,
            'hidden_activation': 'gelu_pytorch_tanh',
            'hidden_size': 48,
            'hidden_size_per_layer_input': 12,
            'initializer_range': 0.02,
            'intermediate_size': 36,
            'layer_types': [
                'sliding_attention',
                'full_attention',
                'sliding_attention',
                'sliding_attention',
                'full_attention',
            ],
            'max_position_embeddings': 512,
            'model_type': 'gemma4_text',
            'num_attention_heads': 4,
            'num_experts': None,
            'num_global_key_value_heads': None,
            'num_hidden_layers': 5,
            'num_key_value_heads': 1,
            'num_kv_shared_layers': 2,
            'pad_token_id': 0,
            'rms_norm_eps': 1e-06,
            'rope_parameters': {
                'full_attention': {
                    'partial_rotary_factor': 0.25,
                    'rope_theta': 1000.0,
                    'rope_type': 'proportional',
                },
                'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
            },
            'sliding_window': 24,
            'tie_word_embeddings': True,
            'top_k_experts': None,
            'transformers_version': '5.5.0.dev0',
            'use_bidirectional_attention': None,
            'use_cache': True,
            'use_double_wide_mlp': True,
            'vocab_size': 260,
            'vocab_size_per_layer_input': 260,
        },
        rope={
            'full_attention': {'partial_rotary_factor': 0.25, 'rope_theta': 1000.0, 'rope_type': 'proportional'},
            'sliding_attention': {'rope_theta': 10000.0, 'rope_type': 'default'},
        },
        misreadings={
            'no window': {'sliding_window': 512},
            'SiLU': {'hidden_activation': 'silu'},
        },
        prompt_lengths=(1, 17, 60),
        gains={'q_norm': 0.4, 'k_norm': 0.4, 'post_per_layer_input_norm': 0.4, 'down_proj': 0.3},
    ),
    # Llama 4: chunks in the layers with rope, a temperature in the one without, experts whose input is scaled.
    Family(
        name='llama4',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Llama4ForCausalLM'],
            'attention_bias': False,
            'attention_chunk_size': 24,
            'attention_dropout': 0.0,
            'attn_scale': 0.7,
            'attn_temperature_tuning': True,
            'bos_token_id': 250,
            'dtype': 'bfloat16',
            'eos_token_id': [251, 252],
            'floor_scale': 8,
            'head_dim': 16,
            'hidden_act': 'silu',
            'hidden_size': 48,
            'initializer_range': 0.02,
            'interleave_moe_layer_step': 2,
            'intermediate_size': 32,
            'intermediate_size_mlp': 64,
            'max_position_embeddings': 512,
            'model_type': 'llama4_text',
            'moe_layers': [1],
            'no_rope_layers': [1, 1, 0],
            'num_attention_heads': 4,
            'num_experts_per_tok': 1,
            'num_hidden_layers': 3,
            'num_key_value_heads': 2,
            'num_local_experts': 4,
            'output_router_logits': False,
            'pad_token_id': 253,
            'rms_norm_eps': 1e-05,
            'rope_scaling': None,
            'rope_theta': 500000.0,
            'router_aux_loss_coef': 0.001,
            'router_jitter_noise': 0.0,
            'tie_word_embeddings': True,
            'transformers_version': '4.55.0',
            'use_cache': True,
            'use_qk_norm': True,
            'vocab_size': 260,
        },
        rope={'rope_type': 'default', 'rope_theta': 500000.0},
        misreadings={
            'no chunks': {'attention_chunk_size': 512},
            'another chunk': {'attention_chunk_size': 25},
            'rope in every layer': {'no_rope_layers': [1, 1, 1]},
            'no temperature': {'attn_temperature_tuning': False},
            'a temperature of other periods': {'floor_scale': 24},
            'no norm of queries and keys': {'use_qk_norm': False},
        },
        prompt_lengths=(1, 17, 60),
        gains={'experts': 0.03},
    ),
    # Llama 4 Scout and Maverick as published: the language model under a prefix, experts in every layer; equal
    # factors of the llama3 scaling.
    Family(
        name='llama4-multimodal',
        dtype=torch.bfloat16,
        config={
            'architectures': ['Llama4ForConditionalGeneration'],
            'boi_token_index': 240,
            'dtype': 'bfloat16',
            'eoi_token_index': 241,
            'image_token_index': 242,
            'model_type': 'llama4',
            'text_config': {
                'attention_bias': False,
                'attention_chunk_size': 32,
                'attention_dropout': 0.0,
                'attn_scale': 0.1,
                'attn_temperature_tuning': True,
                'bos_token_id': 250,
                'cache_implementation': 'static',
                'eos_token_id': [251, 252],
                'floor_scale': 16,
                'for_llm_compressor': False,
                'head_dim': 24,
                'hidden_act': 'silu',
                'hidden_size': 48,
                'initializer_range': 0.02,
                'interleave_moe_layer_step': 1,
                'intermediate_size': 24,
                'intermediate_size_mlp': 64,
                'max_position_embeddings': 1024,
                'model_type': 'llama4_text',
                'no_rope_layers': [],
                'no_rope_layer_interval': 2,
                'num_attention_heads': 4,
                'num_experts_per_tok': 1,
                'num_hidden_layers': 2,
                'num_key_value_heads': 4,
                'num_local_experts': 8,
                'output_router_logits': False,
                'pad_token_id': 253,
                'rms_norm_eps': 1e-05,
                'rope_scaling': {
                    'factor': 16.0,
                    'high_freq_factor': 1.0,
                    'low_freq_factor': 1.0,
                    'original_max_position_embeddings': 64,
                    'rope_type': 'llama3',
                },
                'rope_theta': 500.0,
                'router_aux_loss_coef': 0.001,
                'router_jitter_noise': 0.0,
                'use_cache': True,
                'use_qk_norm': False,
                'vocab_size': 260,
            },
            'tie_word_embeddings': False,
            'transformers_version': '4.51.0',
            'vision_config': {'hidden_size': 32, 'model_type': 'llama4_vision_model', 'num_hidden_layers': 1},
        },
        rope={
            'factor': 16.0,
            'high_freq_factor': 1.0,
            'low_freq_factor': 1.0,
            'original_max_position_embeddings': 64,
            'rope_type': 'llama3',
            'rope_theta': 500.0,
        },
        misreadings={
            'no scaling': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}},
            'norms of queries and keys': {'use_qk_norm': True},
            'no chunks': {'attention_chunk_size': 1024},
        },
        prompt_lengths=(1, 17, 60),
        gains={'experts': 0.01},
    ),
]



def in_format(base: str, name: str, gains={}, **sizes) -> Family:
    """A family's model in a weight format; sizes are multiples of the groups and of four ranks."""
    family = copy.deepcopy(next(each for each in FAMILIES if each.name == base))
    family.name = f'{base}-{name}'
    family.format = name
    family.config |= {'hidden_size': 64, 'intermediate_size': 192, **sizes}
    family.gains |= gains
    quantization = formats.FORMATS[name].config
    if quantization:
        family.config['quantization_config'] = quantization
    family.max_shard_size = None
    family.misreadings = {}
    if base != 'phi4-mini':  # its rotary embedding depends on the length
        family.prompt_lengths = (1, 17, 60)
    return family


FAMILIES += [
    in_format('llama-grouped', 'fp8-channel'),
    in_format('qwen2', 'fp8-tensor'),
    in_format('llama-grouped', 'fp8-block'),
    in_format('qwen3', 'fp8-static'),
    in_format('llama-grouped', 'fbgemm'),
    in_format('qwen3', 'modelopt'),
    in_format('qwen3', 'int8'),
    in_format('llama-grouped', 'int4'),
    in_format('llama-grouped', 'int4-ordered'),
    in_format('qwen3', 'mixed'),
    in_format('qwen2', 'awq'),
    in_format('phi4-mini', 'awq'),
    in_format('qwen3-moe', 'gptq', moe_intermediate_size=32),
    in_format('llama-grouped', 'gptq-zeros'),
    in_format('llama-grouped', 'gptq-ordered'),
    in_format('gpt-oss', 'mxfp4', gains={'experts': 0.1}, intermediate_size=64),
    in_format('llama-grouped', 'mxfp4-packed'),
]

# Tensors beside a language model, which is published under a prefix.
OTHER_TENSORS = {'vision_tower.patch_conv.weight': (16, 12), 'multi_modal_projector.linear_1.weight': (48, 16)}
PREFIX = 'language_model.'


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write_checkpoint(family: Family, folder: Path, seed: int) -> None:
    """Writes the family's config.json and random weights in the layout of published checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / 'config.json', family.config)
    if family.generation_config:
        write_json(folder / 'generation_config.json', family.generation_config)

    tensors = random_tensors(family, AutoConfig.from_pretrained(folder).get_text_config(), seed)
    if family.weight_block_size:
        tensors = quantize(family, tensors)
    if family.format:
        form = formats.FORMATS[family.format]
        tensors = formats.quantize(form, tensors, family.config['num_hidden_layers'])
        for name, content in form.files.items():
            write_json(folder / name, content)
    if 'text_config' in family.config:
        tensors = {PREFIX + name: tensor for name, tensor in tensors.items()}
        tensors |= {name: torch.ones(shape, dtype=family.dtype) for name, shape in OTHER_TENSORS.items()}
    if family.max_shard_size is None:
        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
        return
    split = split_torch_state_dict_into_shards(
        tensors,
        filename_pattern='model{suffix}.safetensors',
        max_shard_size=family.max_shard_size,
    )
    for filename, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / filename, metadata={'format': 'pt'})
    weight_map = dict(sorted(split.tensor_to_filename.items()))
    write_json(folder / 'model.safetensors.index.json', {'metadata': split.metadata, 'weight_map': weight_map})


def random_tensors(family: Family, config, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors with transformers' names and shapes, scaled so that each affects the logits."""
    generator = torch.Generator().manual_seed(seed)
    shapes = published_shapes(config.model_type, AutoModelForCausalLM.from_config(config).state_dict())
    if config.tie_word_embeddings:
        del shapes['lm_head.weight']  # as in published checkpoints

    embedding_std = LOGIT_STD / math.sqrt(config.hidden_size)
    is_gemma = config.model_type.startswith('gemma')
    embedding_scale = math.sqrt(config.hidden_size) if is_gemma else getattr(config, 'embedding_multiplier', 1)
    output_std = embedding_std * embedding_scale / getattr(config, 'residual_multiplier', 1)
    norm_offset = 1 if is_gemma and config.model_type != 'gemma4_text' else 0
    has_output_norms = any(name.endswith('post_feedforward_layernorm.weight') for name in shapes)
    gains = {
        'q_proj': 1.2,  # distinct attention weights without magnifying rounding
        'k_proj': 1.2,
        'o_proj': 0.5 * output_std,  # layers must not dominate the token in the residual, or the
        'down_proj': 1.5 * output_std,  # greedy continuation would repeat one token
        'router': 5.0,
        'gate': 5.0,  # an unambiguous first choice of the router: rounding only changes experts with small weights
        'experts': 0.25,  # so small that a different choice of experts through rounding has no effect
        'e_score_correction_bias': 0.3,
    } | family.gains

    def normal(shape):
        return torch.randn(shape, generator=generator)

    def uniform(shape):
        return torch.rand(shape, generator=generator)

    def draw(name, shape):
        layer, kind = name.split('.')[-2:]
        if layer in ('embed_tokens', 'lm_head'):
            return normal(shape) * embedding_std
        if layer == 'embed_tokens_per_layer':
            return normal(shape) / math.sqrt(config.hidden_size_per_layer_input)
        if layer == 'norm':  # of either sign: with tied embeddings a token would otherwise predict itself
            return (uniform(shape) + 0.5) * normal(shape).sign() - norm_offset
        if has_output_norms and layer.startswith('post_'):
            return (uniform(shape) + 0.5) * output_std * gains.get(layer, 1.0) - norm_offset
        if 'norm' in layer:
            return (uniform(shape) + 0.5) * gains.get(layer, 1.0) - norm_offset
        if kind in ('layer_scalar', 'scale'):
            return uniform(shape) + 0.5
        if kind == 'per_expert_scale':  # of either sign, as a norm follows
            return (uniform(shape) + 0.5) * torch.tensor([1, -1]).repeat(shape[0] // 2)
        if kind == 'sinks':
            return normal(shape)
        if kind == 'e_score_correction_bias':
            return normal(shape) * gains[kind]
        if layer == 'experts':  # stacked
            layer, kind = kind.removesuffix('_bias'), 'bias' if kind.endswith('_bias') else 'weight'
        layer = 'down_proj' if layer == 'w2' else layer
        gain = gains.get(layer, 1.0)
        if '.experts.' in name and layer == 'down_proj':
            gain *= gains['experts']
        return normal(shape) * (0.3 * gain if kind == 'bias' else gain / math.sqrt(shape[1]))

    def stored(name):  # as in published checkpoints
        return torch.float32 if name.endswith('e_score_correction_bias') else family.dtype

    return {name: draw(name, shape).to(stored(name)).contiguous() for name, shape in sorted(shapes.items())}


def quantize(family: Family, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices in fp8 with a scale per block, as in Qwen's and DeepSeek's checkpoints."""
    kept = family.config['quantization_config']['modules_to_not_convert']
    rows, cols = family.weight_block_size
    result = {}
    for name, tensor in tensors.items():
        module = name.removesuffix('.weight')
        if not module.endswith('_proj') or module in kept:
            result[name] = tensor
            continue
        scales = torch.tensor(
            [
                [block.abs().max() / torch.finfo(torch.float8_e4m3fn).max for block in band.float().split(cols, dim=1)]
                for band in tensor.split(rows)
            ]
        )
        result[name] = (tensor.float() / expand(scales, tensor.shape, rows, cols)).to(torch.float8_e4m3fn)
        result[f'{name}_scale_inv'] = scales
    return result


def expand(scales: torch.Tensor, shape, rows: int, cols: int) -> torch.Tensor:
    """Expands block scales to elements."""
    return scales.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[: shape[0], : shape[1]]


def dequantized(family: Family, folder: Path) -> Path:
    """A folder with the plain model, which transformers runs on any device; else `folder` itself."""
    if 'text_config' in family.config:
        return language_model(family, folder)
    if family.weight_block_size is None and family.format is None:
        return folder
    plain = Path(tempfile.mkdtemp())
    config = {key: value for key, value in family.config.items() if key != 'quantization_config'}
    write_json(plain / 'config.json', config)
    tensors = load_file(folder / 'model.safetensors')
    if family.format:
        result = formats.dequantize(formats.FORMATS[family.format], tensors)
        result = {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in result.items()}
        save_file(result, plain / 'model.safetensors', metadata={'format': 'pt'})
        return plain
    result = {}
    for name, tensor in tensors.items():
        if name.endswith('_scale_inv'):
            continue
        scales = tensors.get(f'{name}_scale_inv')
        result[name] = tensor.float() * (1 if scales is None else expand(scales, tensor.shape, *family.weight_block_size))
    save_file(result, plain / 'model.safetensors', metadata={'format': 'pt'})
    return plain


def language_model(family: Family, folder: Path) -> Path:
    """A folder with the language model alone."""
    plain = Path(tempfile.mkdtemp())
    write_json(plain / 'config.json', family.config['text_config'] | {'dtype': family.config['dtype']})
    tensors = load_file(folder / 'model.safetensors')
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    save_file(own, plain / 'model.safetensors', metadata={'format': 'pt'})
    return plain


# Names of Mixtral's checkpoints.
MIXTRAL_NAMES = {'.mlp.': '.block_sparse_moe.', 'gate_proj': 'w1', 'up_proj': 'w3', 'down_proj': 'w2'}


def published_shapes(model_type: str, tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """Tensor shapes in checkpoints, with separate matrices per expert, which transformers 5 stacks."""
    if model_type in ('gpt_oss', 'llama4_text', 'gemma4_text'):
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = separate_shapes(tensors)
    if model_type != 'mixtral':
        return shapes

    def renamed(name):
        for ours, theirs in MIXTRAL_NAMES.items():
            name = name.replace(ours, theirs)
        return name

    return {renamed(name): shape for name, shape in shapes.items()}


def separate_shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    shapes = {}
    for name, tensor in tensors.items():
        prefix, _, matrix = name.rpartition('.')
        if not prefix.endswith('.experts'):
            shapes[name] = tuple(tensor.shape)
            continue
        num_experts, rows, cols = tensor.shape
        for expert in range(num_experts):
            if matrix == 'gate_up_proj':
                shapes[f'{prefix}.{expert}.gate_proj.weight'] = (rows // 2, cols)
                shapes[f'{prefix}.{expert}.up_proj.weight'] = (rows // 2, cols)
            else:
                shapes[f'{prefix}.{expert}.{matrix}.weight'] = (rows, cols)
    return shapes


def load(folder: Path, dtype: torch.dtype, config=None):
    """Loads the folder in transformers with eager attention and experts."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation='eager',
        experts_implementation='eager',
        output_loading_info=True,
    )
    for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys', 'error_msgs'):
        assert not info.get(problem), f'{folder.name}: {problem} {info[problem]}'
    # transformers keeps the norms of gpt-oss in float32.
    assert all(t.dtype == dtype or name.endswith('norm.weight') for name, t in model.named_parameters())
    return model.eval()


def check_config(family: Family, folder: Path) -> None:
    """Asserts that transformers reads config.json as intended."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()

    def without_type(rope):
        return {
            key: without_type(value) if isinstance(value, dict) else value for key, value in rope.items() if key != 'type'
        }

    rope = without_type(text.rope_parameters)
    assert rope == family.rope, f'{family.name}: transformers reads {rope}'
    assert config.dtype == family.dtype, f'{family.name}: transformers reads dtype {config.dtype}'


# --- the reference ----------------------------------------------------------------------------------------------------


def random_prompts(family: Family) -> list[list[int]]:
    """One prompt of each length, of ids from the whole vocabulary; the first and last id are in the second prompt."""
    generator = torch.Generator().manual_seed(20)
    vocab_size = family.config.get('text_config', family.config)['vocab_size']
    prompts = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in family.prompt_lengths]
    prompts[1][3] = 0
    prompts[1][8] = vocab_size - 1
    return prompts


@torch.inference_mode()
def logprobs_of(model, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids) - 1, vocab_size]: row i - 1 predicts token i. One forward, then log-softmax in float32."""
    logits = model(torch.tensor([token_ids]), use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


@torch.inference_mode()
def greedy(model, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Continues the prompt by GENERATED tokens with a KV cache; also their logprobs, [GENERATED, vocab_size]."""
    token_ids, rows, cache = [], [], None
    step = prompt
    for _ in range(GENERATED):
        output = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits[0, -1].float().log_softmax(-1))
        step = [int(rows[-1].argmax())]
        token_ids += step
    return token_ids, torch.stack(rows)


def gaps(logprobs: torch.Tensor) -> torch.Tensor:
    """Difference between the top two logprobs of each row."""
    first, second = logprobs.topk(2).values.unbind(-1)
    return first - second


def actual(logprobs: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    """The logprob of each token of the sequence except the first."""
    return logprobs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]


def records(logprobs: torch.Tensor, token_ids: list[int], with_rank: bool) -> list[dict]:
    result = []
    for row, token_id in zip(logprobs, token_ids[1:], strict=True):
        logprob = row[token_id]
        record = {'logprob': rounded(logprob)}
        if with_rank:
            others = torch.cat([row[:token_id], row[token_id + 1 :]])
            record['rank'] = 1 + int((others > logprob).sum())
            record['margin'] = rounded((others - logprob).abs().min())
        top = row.topk(TOP)
        record['top'] = [[int(i), rounded(p)] for p, i in zip(top.values, top.indices)]
        result.append(record)
    return result


# --- one family -------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """A family's model in the three types, on its prompts and their greedy continuations."""

    sequences: list[list[int]]  # prompt + continuation
    logprobs: dict[str, list[torch.Tensor]]  # by type, for each sequence
    noise: float  # largest difference between the float32 logprobs with a KV cache and without
    greedy_gap: float
    distinct: int
    longest_run: int
    half_error: dict[str, float]  # of the sequences' logprobs, against float32 arithmetic on the same rounded weights
    total_error: dict[str, float]  # the same against the float32 model
    routing_error: float  # of the sequences' logprobs, through other choices among nearly tied experts
    flips: dict[str, int]  # arg max differs from float32 arithmetic although the half precision gap exceeds the tolerance
    clear: dict[str, float]  # share of positions with a gap over the tolerance

    def robust(self) -> bool:
        return (
            self.noise < MAX_NOISE
            and self.greedy_gap > MIN_GREEDY_GAP
            and self.distinct >= MIN_DISTINCT
            and self.longest_run <= MAX_RUN
            and max(self.half_error.values()) <= MAX_HALF_ERROR
            and self.routing_error <= MAX_ROUTING_ERROR
            and sum(self.flips.values()) == 0
        )

    def summary(self) -> str:
        return (
            f'greedy gap {self.greedy_gap:.4f}, distinct {self.distinct}, run {self.longest_run}, '
            f'noise {self.noise:.0e}, routing error {self.routing_error:.4f}; '
            + '; '.join(
                f'{name}: error {self.half_error[name]:.4f} ({self.total_error[name]:.4f} against float32), '
                f'{self.flips[name]} flips, {self.clear[name]:.0%} clear'
                for name in self.half_error
            )
        )


def compute_reference(folder: Path, prompts: list[list[int]]) -> Reference:
    model = load(folder, torch.float32)
    continuations = [greedy(model, prompt) for prompt in prompts]
    sequences = [prompt + token_ids for prompt, (token_ids, _) in zip(prompts, continuations)]
    logprobs = {'float32': [logprobs_of(model, sequence) for sequence in sequences]}
    noise = max(
        float((whole[-GENERATED:] - cached).abs().max())
        for whole, (_, cached) in zip(logprobs['float32'], continuations)
    )

    half_error, total_error, flips, clear = {}, {}, {}, {}
    for name, dtype in (('bfloat16', torch.bfloat16), ('float16', torch.float16)):
        half = load(folder, dtype)
        logprobs[name] = [logprobs_of(half, sequence) for sequence in sequences]
        upcast = half.float()
        exact = [logprobs_of(upcast, sequence) for sequence in sequences]
        pairs = list(zip(sequences, logprobs[name], exact, logprobs['float32']))
        half_error[name] = max(float((actual(h, s) - actual(e, s)).abs().max()) for s, h, e, _ in pairs)
        total_error[name] = max(float((actual(h, s) - actual(f, s)).abs().max()) for s, h, _, f in pairs)
        flips[name] = sum(
            int(((h.argmax(-1) != e.argmax(-1)) & (gaps(h) > HALF_TOLERANCE)).sum()) for _, h, e, _ in pairs
        )
        clear[name] = float(torch.cat([gaps(h) > HALF_TOLERANCE for _, h, _, _ in pairs]).float().mean())

    return Reference(
        sequences=sequences,
        logprobs=logprobs,
        noise=noise,
        greedy_gap=min(float(gaps(rows).min()) for _, rows in continuations),
        distinct=min(len(set(token_ids)) for token_ids, _ in continuations),
        longest_run=max(longest_run(token_ids) for token_ids, _ in continuations),
        half_error=half_error,
        total_error=total_error,
        routing_error=routing_error(model, sequences, logprobs['float32']),
        flips=flips,
        clear=clear,
    )


@torch.inference_mode()
def routing_error(model, sequences: list[list[int]], logprobs: list[torch.Tensor]) -> float:
    """The largest change of the sequences' logprobs by ROUTER_NOISE at the inputs of routers by sigmoids, and of Gemma's.

    Another order of rounding changes choices that are nearly tied, and nearly tied experts have weights as large as
    any here. The float32 model shows this alone, without the rounding of logits. 0 for models without such routers.
    """
    routers = [
        module
        for module in model.modules()
        if hasattr(module, 'e_score_correction_bias') or type(module).__name__ in ('Llama4Router', 'Gemma4TextRouter')
    ]
    generator = torch.Generator().manual_seed(0)

    def add_noise(_, inputs):
        (hidden,) = inputs
        noise = torch.randn(hidden.shape, generator=generator) * hidden.square().mean(-1, keepdim=True).sqrt()
        return (hidden + ROUTER_NOISE * noise,)

    hooks = [router.register_forward_pre_hook(add_noise) for router in routers]
    worst = 0.0
    for sequence, right in zip(sequences, logprobs) if routers else ():
        rows = model(torch.tensor([sequence] * ROUTER_DRAWS), use_cache=False).logits[:, :-1].log_softmax(-1)
        changes = [(actual(wrong, sequence) - actual(right, sequence)).abs().max() for wrong in rows]
        worst = max(worst, float(max(changes)))
    for hook in hooks:
        hook.remove()
    return worst


def longest_run(token_ids: list[int]) -> int:
    longest = run = 1
    for previous, token_id in zip(token_ids, token_ids[1:]):
        run = run + 1 if token_id == previous else 1
        longest = max(longest, run)
    return longest


def smallest_effect(family: Family, folder: Path, sequences: list[list[int]]) -> tuple[float, str]:
    """The smallest change of logprobs by any mistake: a misread config or an ignored kind of tensor."""
    effects = {}

    def note(label, model):
        wrong = [actual(logprobs_of(model, s), s) for s in sequences]
        effects[label] = max(float((w - r).abs().max()) for w, r in zip(wrong, right))

    reference = load(folder, torch.float32)
    right = [actual(logprobs_of(reference, s), s) for s in sequences]
    for label, changes in family.misreadings.items():
        config = AutoConfig.from_pretrained(folder)
        for key, value in changes.items():
            setattr(config, key, copy.deepcopy(value))
        note(label, load(folder, torch.float32, config))

    def tensors_of(model):
        return [*model.named_parameters(), *model.named_buffers()]

    def kind(name):  # model.layers.1.self_attn.q_norm.weight -> q_norm.weight
        return '.'.join(part for part in name.split('.')[-2:] if not part.isdigit())

    norm = 0.0 if reference.config.model_type in ('gemma2', 'gemma3_text') else 1.0
    scales = {suffix: 1.0 for suffix in ('norm_1.weight', 'norm_2.weight', 'layer_scalar', 'router.scale', 'per_expert_scale')}
    neutral = scales | {'norm.weight': norm, '.bias': 0.0, '_bias': 0.0, '.sinks': -100.0}
    for suffix, value in neutral.items():
        for which in sorted({kind(name) for name, _ in tensors_of(reference) if name.endswith(suffix)}):
            model = load(folder, torch.float32)
            with torch.no_grad():
                for name, parameter in tensors_of(model):
                    if kind(name) == which:
                        parameter.fill_(value)
            note(f'{which} ignored', model)
    label = min(effects, key=effects.get)
    return effects[label], label


def make(family: Family) -> None:
    folder = HERE / 'checkpoints' / family.name
    prompts = random_prompts(family)
    for seed in range(1, 500):
        write_checkpoint(family, folder, seed)
        check_config(family, folder)
        plain = dequantized(family, folder)
        reference = compute_reference(plain, prompts)
        if not reference.robust():
            print(f'{family.name}: not seed {seed}: {reference.summary()}', file=sys.stderr)
            continue
        effect, label = smallest_effect(family, plain, reference.sequences)
        if effect > family.min_effect:
            break
        print(f'{family.name}: not seed {seed}: {label} changes logprobs by {effect:.4f} only', file=sys.stderr)
    else:
        raise SystemExit(f'{family.name}: no seed gives a robust reference; adjust the scales of its weights')

    expected = {
        'family': family.name,
        'seed': seed,
        'prompts': [
            {
                'promptTokenIds': prompt,
                'tokenIds': sequence[len(prompt) :],
                'float32': records(reference.logprobs['float32'][i], sequence, with_rank=True),
                'bfloat16': records(reference.logprobs['bfloat16'][i], sequence, with_rank=False),
                'float16': records(reference.logprobs['float16'][i], sequence, with_rank=False),
            }
            for i, (prompt, sequence) in enumerate(zip(prompts, reference.sequences))
        ],
    }
    (HERE / 'expected').mkdir(exist_ok=True)
    (HERE / 'expected' / f'{family.name}.json').write_text(json.dumps(expected, separators=(',', ':')) + '\n')

    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f'{family.name}: seed {seed}, {size / 1e3:.0f} kB, least effect {effect:.2f} ({label})\n'
        f'    {reference.summary()}'
    )


def rounded(value: torch.Tensor) -> float:
    return round(float(value), 6)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n')


if __name__ == '__main__':
    names = sys.argv[1:] or [family.name for family in FAMILIES]
    unknown = set(names) - {family.name for family in FAMILIES}
    if unknown:
        raise SystemExit(f'no such family: {", ".join(sorted(unknown))}')
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for family in FAMILIES:
        if family.name in names:
            make(family)
