/** Valid and invalid safetensors files for tests. */

/** A file with this header, verbatim, and this many data bytes. */
export function safetensors(header: unknown, dataBytes: number): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(dataBytes)]);
}

const BYTES: Record<string, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I32: 4,
  I8: 1,
  U8: 1,
  F8_E4M3: 1,
};

/** A valid file of these tensors, contiguous. */
export function fileOf(tensors: Record<string, { dtype: string; shape: number[] }>): Buffer {
  let end = 0;
  const header = Object.entries(tensors).map(([name, { dtype, shape }]) => {
    const begin = end;
    end += shape.reduce((product, size) => product * size, BYTES[dtype]);
    return [name, { dtype, shape, data_offsets: [begin, end] }];
  });
  return safetensors({ __metadata__: { format: 'pt' }, ...Object.fromEntries(header) }, end);
}

/** A copy of the file with NaN in one row of the tensor [rows, cols]. */
export function withNanRow(file: Buffer, name: string, row: number): Buffer {
  const headerEnd = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, headerEnd)) as Record<
    string,
    { shape: [number, number]; data_offsets: [number, number] }
  >;
  const { shape, data_offsets: offsets } = header[name];
  const rowBytes = (offsets[1] - offsets[0]) / shape[0];
  const begin = headerEnd + offsets[0] + row * rowBytes;
  return Buffer.from(file).fill(0xff, begin, begin + rowBytes); // all bits set is NaN in every type
}
