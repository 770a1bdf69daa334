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
}


def rope_scaling(rope, attention_scaling):
    kind = rope['rope_type']
    if kind == 'default':
        return {'type': kind}
    if kind == 'linear':
        return {'type': kind, 'factor': rope['factor']}
    if kind == 'llama3':
        return {
            'type': kind,
            'factor': rope['factor'],
            'lowFreqFactor': rope['low_freq_factor'],
            'highFreqFactor': rope['high_freq_factor'],
            'originalMaxPositionEmbeddings': rope['original_max_position_embeddings'],
        }
    return {
        'type': kind,
        'attentionFactor': attention_scaling,
        'originalMaxPositionEmbeddings': rope['original_max_position_embeddings'],
        'truncate': rope.get('truncate', True),
    }


def expected(config):
    read = CONFIG_MAPPING[config['model_type']].from_dict(copy.deepcopy(config))
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(read)
    base, layer = model.model, model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    if read.model_type == 'mistral':  # its layers ask the configuration
        windows = [read.sliding_window] * len(base.layers)
    else:
        windows = [getattr(each.self_attn, 'sliding_window', None) for each in base.layers]
    eos = read.eos_token_id
    rope_type = base.rotary_emb.config.rope_parameters['rope_type']
    return {
        # What YaRN's parameters come to, those among them that transformers keeps to itself.
        'inverseFrequencies': ROPE_INIT_FUNCTIONS['yarn'](read, 'cpu')[0].tolist() if rope_type == 'yarn' else None,
        'spec': {
            'vocabSize': base.embed_tokens.weight.shape[0],
            'hiddenSize': base.embed_tokens.weight.shape[1],
            'intermediateSize': mlp.gate_proj.weight.shape[0],
            'numLayers': len(base.layers),
            'numHeads': attention.q_proj.weight.shape[0] // attention.head_dim,
            'numKvHeads': attention.k_proj.weight.shape[0] // attention.head_dim,
            'headDim': attention.head_dim,
            'rmsNormEps': base.norm.variance_epsilon,
            'ropeTheta': base.rotary_emb.config.rope_parameters['rope_theta'],
            'ropeScaling': rope_scaling(base.rotary_emb.config.rope_parameters, base.rotary_emb.attention_scaling),
            'slidingWindows': [window or 0 for window in windows],
            'qkvBias': attention.q_proj.bias is not None,
            'outputBias': attention.o_proj.bias is not None,
            'mlpBias': mlp.gate_proj.bias is not None,
            'qkNorm': hasattr(attention, 'q_norm'),
            'tieWordEmbeddings': model.lm_head.weight is base.embed_tokens.weight,
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
