/** The tensors in which each kind of checkpoint holds a quantized matrix: names, types and shapes. */
import type { QuantizationScheme } from '../config/uniprocConfig';
import type { SafetensorsDType } from './safetensors';
import type { Parameter, StorageType, TensorLayout } from './spec';

/** A tensor that a part of a quantized matrix may have. */
export interface StoredTensor {
  suffix: string;
  dtypes: readonly SafetensorsDType[];
  shape: number[];
  layout: TensorLayout;
  /** null: as the tensor's dtype says. */
  type: StorageType | null;
}

/** Of the whole tensor: rows and columns of the parameter's part. */
type Sizes = readonly [rows: number, cols: number];
type Part = Parameter['part'];

const FLOATS: readonly SafetensorsDType[] = ['F32', 'F16', 'BF16'];
const WORDS: readonly SafetensorsDType[] = ['I32'];
const PER_WORD = 8;
const BYTES: readonly SafetensorsDType[] = ['U8'];
const PER_BYTE = 2;

const words = (
  suffix: string,
  shape: number[],
  layout: TensorLayout,
  type: StorageType = 'uint4',
): StoredTensor => ({ suffix, dtypes: WORDS, shape, layout, type });
const floats = (suffix: string, shape: number[], layout: TensorLayout): StoredTensor => ({
  suffix,
  dtypes: FLOATS,
  shape,
  layout,
  type: null,
});

/** Codes of float4 in bytes, or E8M0 scales. */
const bytes = (suffix: string, shape: number[], type: StorageType): StoredTensor => ({
  suffix,
  dtypes: BYTES,
  shape,
  layout: 'rows',
  type,
});

/**
 * Each kind's tensors for a part, the first that a checkpoint has being its own. Sizes are the
 * matrix's, or the numbers of its rows and groups.
 */
const KINDS: Record<
  QuantizationScheme['tensors'],
  (scheme: QuantizationScheme, part: Part, sizes: Sizes) => StoredTensor[]
> = {
  plain: (scheme, part, sizes) => {
    if (part === 'weight') {
      const dtype = scheme.type === 'int8' ? 'I8' : 'F8_E4M3';
      const shape = [...sizes];
      return [{ suffix: 'weight', dtypes: [dtype], shape, layout: 'rows', type: scheme.type }];
    }
    const [rows] = sizes;
    return ['weight_scale_inv', 'weight_scale'].flatMap((suffix) => [
      floats(suffix, [...sizes], 'rows'),
      ...(scheme.block
        ? []
        : [
            floats(suffix, [rows], 'rows'),
            floats(suffix, [1], 'oneForAll'),
            floats(suffix, [], 'oneForAll'),
            floats(suffix, [1, 1], 'oneForAll'),
          ]),
    ]);
  },
  float: (_, part, sizes) => (part === 'weight' ? [floats('weight', [...sizes], 'rows')] : []),
  packed: ({ type }, part, [rows, cols]) => {
    if (type === 'float4_e2m1')
      return float4Tensors(part, [rows, cols], 'weight_packed', 'weight_scale');
    switch (part) {
      case 'weight':
        return [words('weight_packed', [rows, cols / PER_WORD], 'rows')];
      case 'zeros':
        return [words('weight_zero_point', [Math.ceil(rows / PER_WORD), cols], 'packedRows')];
      case 'order':
        return [words('weight_g_idx', [rows], 'rows', 'float32')];
      default:
        return [floats('weight_scale', [rows, cols], 'rows')];
    }
  },
  gptq: (_, part, sizes) => gptqTensors(part, sizes, 'gptq'),
  gptqV2: (_, part, sizes) => gptqTensors(part, sizes, 'gptqV2'),
  awq: (_, part, [rows, cols]) => {
    switch (part) {
      case 'weight':
        return [words('qweight', [cols, rows / PER_WORD], 'awq')];
      case 'zeros':
        return [words('qzeros', [cols, rows / PER_WORD], 'awq')];
      default:
        return [floats('scales', [cols, rows], 'transposed')];
    }
  },
  mxfp4: (_, part, sizes) => float4Tensors(part, sizes, 'blocks', 'scales'),
};

function float4Tensors(
  part: Part,
  [rows, cols]: Sizes,
  codes: string,
  scales: string,
): StoredTensor[] {
  return part === 'weight'
    ? [bytes(codes, [rows, cols / PER_BYTE], 'float4_e2m1')]
    : [bytes(scales, [rows, cols], 'int8')];
}

function gptqTensors(part: Part, [rows, cols]: Sizes, layout: 'gptq' | 'gptqV2'): StoredTensor[] {
  switch (part) {
    case 'weight':
      return [words('qweight', [cols / PER_WORD, rows], layout)];
    case 'zeros':
      return [words('qzeros', [cols, rows / PER_WORD], layout)];
    case 'order':
      return [words('g_idx', [rows], 'rows', 'float32')];
    default:
      return [floats('scales', [cols, rows], 'transposed')];
  }
}

export function storedTensors(
  scheme: QuantizationScheme,
  part: Part,
  sizes: Sizes,
): StoredTensor[] {
  return KINDS[scheme.tensors](scheme, part, sizes);
}

/** Suffix of a quantized matrix's tensor. */
export function weightSuffix({ tensors }: QuantizationScheme): string {
  switch (tensors) {
    case 'plain':
    case 'float':
      return 'weight';
    case 'packed':
      return 'weight_packed';
    case 'mxfp4':
      return 'blocks';
    default:
      return 'qweight';
  }
}

/** Suffixes of the tensors that may hold a module's matrix, besides 'weight'. */
export const PACKED_SUFFIXES = ['weight_packed', 'qweight', 'blocks'];

/** Suffixes of a module's tensors in any format. */
export const MODULE_SUFFIXES = [
  'weight',
  'bias',
  'weight_scale_inv',
  'weight_scale',
  'weight_packed',
  'weight_zero_point',
  'weight_g_idx',
  'qweight',
  'blocks',
  'qzeros',
  'scales',
  'g_idx',
];

/**
 * Of a quantized module, tensors that may be there without being read: zero points of symmetric
 * weights, which are 8; groups of columns in order; the bias that AutoGPTQ writes for every layer.
 */
export function isOptional({ tensors, hasZeros, isOrdered }: QuantizationScheme, suffix: string) {
  switch (suffix) {
    case 'weight_zero_point':
      return !hasZeros;
    case 'qzeros':
      return !hasZeros && tensors !== 'awq';
    case 'weight_g_idx':
    case 'g_idx':
      return !isOrdered;
    case 'bias':
      return tensors === 'gptq' || tensors === 'gptqV2';
    default:
      return false;
  }
}
