"""Weight formats of published checkpoints: how a matrix is written, and what its elements are.

Each format has `write`, from a matrix to the tensors of its module, and `read`, from those tensors to the elements in
float64, by the formula of the library that defines the format. make.py takes the elements as the expected weights.
"""

import re
from dataclasses import dataclass, field
from typing import Callable

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
PER_WORD = 8
# The row of each nibble of a word, from the low bits up (AutoAWQ, awq/utils/packing_utils.py: AWQ_ORDER).
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

# Names of tensors that stack the matrices of a layer's experts.
STACKS = r'\.experts\.(gate_up|down)_proj'

Tensors = dict[str, torch.Tensor]


@dataclass
class Format:
    write: Callable[[torch.Tensor, str], Tensors]  # of a matrix [rows, cols] and its name; keys are suffixes
    read: Callable[[Tensors], torch.Tensor]
    config: dict  # quantization_config
    keeps: Callable[[str], bool] = lambda module: False  # modules that stay in a float type
    others: Callable[[int], Tensors] = lambda layer: {}  # further tensors of a layer
    # The tensors of all experts are stacked, [experts, cols, rows] where they are not quantized; the others stay.
    is_stacked: bool = False
    files: dict = field(default_factory=dict)  # further JSON files


# --- words ------------------------------------------------------------------------------------------------------------


def pack(codes: torch.Tensor, dim: int, order=range(PER_WORD)) -> torch.Tensor:
    """Eight codes of 4 bits along `dim` in an int32; its i-th nibble is code order[i]."""
    codes = codes.movedim(dim, -1).to(torch.int64)
    short = -codes.shape[-1] % PER_WORD
    codes = torch.nn.functional.pad(codes, (0, short)).unflatten(-1, (-1, PER_WORD))
    words = sum(codes[..., k] << (4 * i) for i, k in enumerate(order))
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def unpack(words: torch.Tensor, dim: int, count: int, order=range(PER_WORD)) -> torch.Tensor:
    words = words.movedim(dim, -1).to(torch.int64) & 0xFFFFFFFF
    codes = torch.empty(*words.shape, PER_WORD, dtype=torch.int64)
    for i, k in enumerate(order):
        codes[..., k] = words >> (4 * i) & 15
    return codes.flatten(-2)[..., :count].movedim(-1, dim)


# --- int4 -------------------------------------------------------------------------------------------------------------


def to_int4(weight: torch.Tensor, group_of: torch.Tensor, symmetric: bool, scale_dtype: torch.dtype):
    """Codes [rows, cols], scales and zero points [rows, groups] of columns in the groups `group_of` [cols]."""
    groups = int(group_of.max()) + 1
    rows, cols = weight.shape
    scales = torch.empty(rows, groups)
    zeros = torch.full((rows, groups), 8, dtype=torch.int64)
    codes = torch.empty(rows, cols, dtype=torch.int64)
    for group in range(groups):
        columns = (group_of == group).nonzero().flatten()
        part = weight[:, columns].float()
        if symmetric:
            scale = part.abs().amax(1) / 7.5
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = (high - low) / 15
        scale = scale.to(scale_dtype).float()
        scales[:, group] = scale
        if not symmetric:
            zeros[:, group] = (-low / scale).round().clamp(0, 15).to(torch.int64)
        shifted = (part / scale[:, None]).round() + zeros[:, group, None]
        codes[:, columns] = shifted.clamp(0, 15).to(torch.int64)
    return codes, scales.to(scale_dtype), zeros


def from_int4(codes, scales, zeros, group_of) -> torch.Tensor:
    return (codes.double() - zeros.double()[:, group_of]) * scales.double()[:, group_of]


def groups_in_order(cols: int, size: int) -> torch.Tensor:
    return torch.arange(cols) // (size if size > 0 else cols)


def act_order(name: str, cols: int, size: int) -> torch.Tensor:
    """Groups of shuffled columns; the same for matrices of the same input, as GPTQ makes them."""
    layer, kind = name.split('.')[2], name.split('.')[-1]
    inputs = {'q_proj': 1, 'k_proj': 1, 'v_proj': 1, 'o_proj': 2, 'gate_proj': 3, 'up_proj': 3, 'down_proj': 4}
    generator = torch.Generator().manual_seed(100 * int(layer) + inputs[kind])
    group_of = torch.empty(cols, dtype=torch.int64)
    group_of[torch.randperm(cols, generator=generator)] = groups_in_order(cols, size)
    return group_of


def packed(size: int, symmetric: bool, ordered: bool, config: dict) -> Format:
    """compressed-tensors, pack-quantized."""

    def write(weight, name):
        rows, cols = weight.shape
        group_of = act_order(name, cols, size) if ordered else groups_in_order(cols, size)
        codes, scales, zeros = to_int4(weight, group_of, symmetric, torch.bfloat16)
        tensors = {
            'weight_packed': pack(codes, 1),
            'weight_scale': scales,
            'weight_shape': torch.tensor([rows, cols]),
        }
        if not symmetric:
            tensors['weight_zero_point'] = pack(zeros, 0)
        if ordered:
            tensors['weight_g_idx'] = group_of.to(torch.int32)
        return tensors

    def read(tensors):
        rows, cols = tensors['weight_shape'].tolist()
        scales = tensors['weight_scale']
        codes = unpack(tensors['weight_packed'], 1, cols)
        zeros = tensors.get('weight_zero_point')
        zeros = torch.full_like(scales, 8) if zeros is None else unpack(zeros, 0, rows)
        group_of = tensors.get('weight_g_idx', groups_in_order(cols, -(-cols // scales.shape[1]))).long()
        return from_int4(codes, scales, zeros, group_of)

    return Format(write, read, config)


def gptq(size: int, symmetric: bool, ordered: bool, version: int) -> Format:
    """AutoGPTQ: words of eight columns, transposed; zero points less one in version 1."""
    less = 1 if version == 1 else 0

    def write(weight, name):
        cols = weight.shape[1]
        group_of = act_order(name, cols, size) if ordered else groups_in_order(cols, size)
        codes, scales, zeros = to_int4(weight, group_of, symmetric, torch.float16)
        return {
            'qweight': pack(codes.T, 0),
            'scales': scales.T.contiguous(),
            'qzeros': pack(((zeros - less) % 16).T, 1),
            'g_idx': group_of.to(torch.int32),
        }

    def read(tensors):
        scales = tensors['scales'].T
        group_of = tensors['g_idx'].long()
        codes = unpack(tensors['qweight'], 0, len(group_of)).T
        zeros = (unpack(tensors['qzeros'], 1, scales.shape[0]).T + less) % 16
        return from_int4(codes, scales, zeros, group_of)

    config = {
        'bits': 4,
        'checkpoint_format': 'gptq' if version == 1 else 'gptq_v2',
        'damp_percent': 0.01,
        'desc_act': ordered,
        'group_size': size,
        'lm_head': False,
        'quant_method': 'gptq',
        'sym': symmetric,
        'true_sequential': True,
    }
    return Format(write, read, config)


def awq(size: int) -> Format:
    """AutoAWQ, version gemm: words of eight rows in their own order, transposed."""

    def write(weight, name):
        codes, scales, zeros = to_int4(weight, groups_in_order(weight.shape[1], size), False, torch.float16)
        return {
            'qweight': pack(codes.T, 1, AWQ_ORDER),
            'scales': scales.T.contiguous(),
            'qzeros': pack(zeros.T, 1, AWQ_ORDER),
        }

    def read(tensors):
        scales = tensors['scales'].T
        rows, cols = scales.shape[0], tensors['qweight'].shape[0]
        codes = unpack(tensors['qweight'], 1, rows, AWQ_ORDER).T
        zeros = unpack(tensors['qzeros'], 1, rows, AWQ_ORDER).T
        return from_int4(codes, scales, zeros, groups_in_order(cols, size))

    config = {
        'bits': 4,
        'group_size': size,
        'modules_to_not_convert': None,
        'quant_method': 'awq',
        'version': 'gemm',
        'zero_point': True,
    }
    return Format(write, read, config)


# --- fp8 and int8 -----------------------------------------------------------------------------------------------------


def scaled(config: dict, kind: torch.dtype, shape: str, **others) -> Format:
    """A scale for each row ([rows, 1]), or one for the matrix ([1] or [])."""

    def write(weight, name):
        largest = FP8_MAX if kind == FP8 else 127
        weight = weight.float()
        scales = (weight.abs().amax(1, keepdim=True) if shape == 'rows' else weight.abs().max()) / largest
        codes = (weight / scales).to(FP8) if kind == FP8 else (weight / scales).round().to(torch.int8)
        tensors = {'weight': codes, 'weight_scale': scales.reshape([1] if shape == 'one' else scales.shape)}
        if shape != 'rows':
            tensors['input_scale'] = torch.full_like(tensors['weight_scale'], 0.02)
        return tensors

    return Format(write, lambda tensors: tensors['weight'].double() * tensors['weight_scale'].double(), config, **others)


def blocks(config: dict, rows: int, cols: int) -> Format:
    """compressed-tensors, a scale for each block."""

    def expand(scales, shape):
        return scales.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[: shape[0], : shape[1]]

    def write(weight, name):
        bands = [band.float().split(cols, 1) for band in weight.split(rows)]
        scales = torch.tensor([[block.abs().max() / FP8_MAX for block in band] for band in bands])
        return {'weight': (weight.float() / expand(scales, weight.shape)).to(FP8), 'weight_scale': scales}

    def read(tensors):
        return tensors['weight'].double() * expand(tensors['weight_scale'].double(), tensors['weight'].shape)

    return Format(write, read, config)


# --- mxfp4 ------------------------------------------------------------------------------------------------------------

# Of the codes 0 to 7; bit 3 is the sign (OCP Microscaling Formats 1.0, section 5.3.3).
FLOAT4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FLOAT4_MAX_EXPONENT = 2
MX_BLOCK = 32
MX_BIAS = 127


def to_float4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of [..., cols] bytes of two codes [..., cols / MX_BLOCK, MX_BLOCK / 2], and E8M0 scales [..., cols / MX_BLOCK]."""
    blocks = weight.float().unflatten(-1, (-1, MX_BLOCK))
    exponents = blocks.abs().amax(-1).log2().floor() - FLOAT4_MAX_EXPONENT
    distances = (blocks.abs()[..., None] / exponents.exp2()[..., None, None] - FLOAT4).abs()
    codes = distances.argmin(-1) | (blocks < 0).long() << 3
    data = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return data.contiguous(), (exponents + MX_BIAS).to(torch.uint8).contiguous()


def mxfp4_packed(config: dict) -> Format:
    """compressed-tensors, mxfp4-pack-quantized."""

    def write(weight, name):
        data, scales = to_float4(weight)
        return {'weight_packed': data.flatten(-2), 'weight_scale': scales}

    def read(tensors):
        data = tensors['weight_packed'].long()
        codes = torch.stack([data & 15, data >> 4], -1).flatten(-2)
        values = torch.cat([FLOAT4, -FLOAT4]).double()[codes]
        return values * (tensors['weight_scale'].double() - MX_BIAS).exp2().repeat_interleave(MX_BLOCK, 1)

    return Format(write, read, config)


def mxfp4() -> Format:
    """gpt-oss: of each expert's matrix [rows, cols] blocks of 32 columns, in 16 bytes, with a power of two each."""

    def write(stack, name):
        data, scales = to_float4(stack.transpose(1, 2))
        return {'blocks': data, 'scales': scales}

    # transformers' own, whose numbers are exact in float32.
    def read(tensors):
        return convert_moe_packed_tensors(tensors['blocks'], tensors['scales'], dtype=torch.float32)

    kept = ['model.layers.*.self_attn', 'model.layers.*.mlp.router', 'model.embed_tokens', 'lm_head']
    return Format(write, read, {'modules_to_not_convert': kept, 'quant_method': 'mxfp4'}, is_stacked=True)


# --- configurations ---------------------------------------------------------------------------------------------------


def weights(bits: int, kind: str, strategy: str, **others) -> dict:
    return {
        'actorder': None,
        'block_structure': None,
        'dynamic': False,
        'group_size': None,
        'num_bits': bits,
        'observer': 'minmax',
        'observer_kwargs': {},
        'strategy': strategy,
        'symmetric': True,
        'type': kind,
    } | others


def group(targets: list[str], weights: dict, activations: dict | None = None) -> dict:
    return {'input_activations': activations, 'output_activations': None, 'targets': targets, 'weights': weights}


def compressed(form: str, *groups: dict, ignore=('lm_head',), **others) -> dict:
    return {
        'config_groups': {f'group_{i}': each for i, each in enumerate(groups)},
        'format': form,
        'global_compression_ratio': 1.5,
        'ignore': list(ignore),
        'kv_cache_scheme': None,
        'quant_method': 'compressed-tensors',
        'quantization_status': 'compressed',
    } | others


TOKEN = weights(8, 'float', 'token', dynamic=True)
INT_TOKEN = weights(8, 'int', 'token', dynamic=True)


def mixed() -> Format:
    """fp8 by row in attention, int4 by row elsewhere; the first layer's down_proj stays in bfloat16."""
    fp8 = scaled({}, FP8, 'rows')
    int4 = packed(-1, True, False, {})
    config = compressed(
        'mixed-precision',
        group(['re:.*self_attn.*'], weights(8, 'float', 'channel'), TOKEN) | {'format': 'float-quantized'},
        group(['Linear'], weights(4, 'int', 'channel')) | {'format': 'pack-quantized'},
        ignore=('lm_head', 're:.*layers[.]0[.]mlp[.]down_proj'),
    )
    return Format(
        write=lambda weight, name: (fp8 if 'self_attn' in name else int4).write(weight, name),
        read=lambda tensors: (int4 if 'weight_packed' in tensors else fp8).read(tensors),
        config=config,
        keeps=lambda module: module == 'model.layers.0.mlp.down_proj',
    )


# Scales of the KV cache have no effect here, as no scheme asks for it in fp8: make_fp8_cache.py makes what that gives.
FORMATS = {
    'fp8-channel': scaled(compressed('float-quantized', group(['Linear'], weights(8, 'float', 'channel'), TOKEN)), FP8, 'rows'),
    'fp8-tensor': scaled(
        compressed(
            'float-quantized',
            group(['Linear'], weights(8, 'float', 'tensor'), weights(8, 'float', 'tensor')),
        ),
        FP8,
        'one',
        others=lambda layer: {f'model.layers.{layer}.self_attn.{x}_scale': torch.tensor([0.03]) for x in 'kv'},
    ),
    'fp8-block': blocks(
        compressed('float-quantized', group(['Linear'], weights(8, 'float', 'block', block_structure=[16, 32]), TOKEN)), 16, 32
    ),
    'fp8-static': scaled({'activation_scheme': 'static', 'ignored_layers': ['lm_head'], 'quant_method': 'fp8'}, FP8, 'scalar'),
    'fbgemm': scaled(
        {'activation_scale_ub': 1200.0, 'modules_to_not_convert': ['lm_head'], 'quant_method': 'fbgemm_fp8'}, FP8, 'rows'
    ),
    # transformers reads no hf_quant_config.json.
    'modelopt': scaled(
        None,
        FP8,
        'scalar',
        files={
            'hf_quant_config.json': {
                'producer': {'name': 'modelopt', 'version': '0.29.0'},
                'quantization': {'exclude_modules': ['lm_head'], 'kv_cache_quant_algo': None, 'quant_algo': 'FP8'},
            }
        },
        others=lambda layer: {
            f'model.layers.{layer}.self_attn.{x}_proj.{x}_scale': torch.tensor(0.03) for x in 'kv'
        },
    ),
    'int8': scaled(
        compressed('int-quantized', group(['Linear'], weights(8, 'int', 'channel'), INT_TOKEN)), torch.int8, 'rows'
    ),
    'int4': packed(32, True, False, compressed('pack-quantized', group(['Linear'], weights(4, 'int', 'group', group_size=32)))),
    'int4-ordered': packed(
        32,
        False,
        True,
        compressed(
            'pack-quantized',
            group(['Linear'], weights(4, 'int', 'group', group_size=32, symmetric=False, actorder='group')),
        ),
    ),
    'mixed': mixed(),
    'awq': awq(32),
    'gptq': gptq(32, symmetric=True, ordered=False, version=1),
    'gptq-zeros': gptq(64, symmetric=False, ordered=False, version=1),
    'gptq-ordered': gptq(32, symmetric=False, ordered=True, version=2),
    'mxfp4': mxfp4(),
    'mxfp4-packed': mxfp4_packed(
        compressed('mxfp4-pack-quantized', group(['Linear'], weights(4, 'float', 'group', group_size=32, scale_dtype='torch.uint8')))
    ),
}


def quantize(format: Format, tensors: Tensors, num_layers: int) -> Tensors:
    """The tensors of a checkpoint with the matrices of its linear layers, but the head and routers, in a format."""
    result = {}
    for name, tensor in tensors.items():
        if format.is_stacked:
            parts = format.write(tensor, name) if re.search(STACKS + '$', name) else {}
            result |= {f'{name}_{suffix}': part for suffix, part in parts.items()} or {name: tensor}
            continue
        module = name.removesuffix('.weight')
        if not module.endswith('_proj') or not name.endswith('.weight') or format.keeps(module):
            result[name] = tensor
            continue
        for suffix, part in format.write(tensor, module).items():
            result[f'{module}.{suffix}'] = part
    for layer in range(num_layers):
        result |= format.others(layer)
    return result


def dequantize(format: Format, tensors: Tensors) -> Tensors:
    """The elements of all weights: of quantized matrices in float64."""
    if format.is_stacked:
        stacks = {name.removesuffix('_blocks') for name in tensors if name.endswith('_blocks')}
        read = {name: format.read({part: tensors[f'{name}_{part}'] for part in ('blocks', 'scales')}) for name in stacks}
        others = {name: tensor for name, tensor in tensors.items() if not re.search(STACKS + '_(blocks|scales)$', name)}
        return others | {name: tensor.contiguous() for name, tensor in read.items()}
    modules: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition('.')
        modules.setdefault(module, {})[suffix] = tensor
    result = {}
    for module, parts in modules.items():
        is_quantized = any(name in parts for name in ('weight_scale', 'scales'))
        if is_quantized:
            result[f'{module}.weight'] = format.read(parts).contiguous()
        for suffix in ('bias',) if is_quantized else ('weight', 'bias'):
            if suffix in parts:
                result[f'{module}.{suffix}'] = parts[suffix]
    return result
