/** A model's GGUF files: one, or a set in parts that is named by its first. */
import path from 'node:path';
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { TensorEntry } from '../safetensors';
import { readGgufHeader, type GgufHeader } from './header';
import { MetadataReader } from './metadata';

/** The name of a part: model-00001-of-00004.gguf. */
const PART = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i;
const MAX_PARTS = 1000;

export interface GgufModel {
  /** The first file, which has the model's metadata. */
  file: string;
  files: string[];
  metadata: MetadataReader;
  endTokens: GgufHeader['endTokens'];
  tensors: ReadonlyMap<string, TensorEntry>;
}

export function isGguf(model: string): boolean {
  return model.toLowerCase().endsWith('.gguf');
}

/** The first of the part's set, if `name` is the name of another part. */
export function firstPartOf(name: string): string | null {
  const part = PART.exec(name);
  if (!part || Number(part[2]) === 1) return null;
  return `${part[1]}-00001-of-${part[3]}${name.slice(-5)}`;
}

/** All names of the set in parts that `name` is of, by its number of parts; else `name` alone. */
export function partsOfSet(name: string): string[] {
  const [, prefix, , total] = PART.exec(name) ?? ['', '', '', ''];
  const count = Number(total);
  if (count === 0 || count > MAX_PARTS) return [name];
  const numbers = Array.from({ length: count }, (_, index) => `${index + 1}`.padStart(5, '0'));
  return numbers.map((number) => `${prefix}-${number}-of-${total}${name.slice(-5)}`);
}

/** Reads the headers of all files of a model. Rejects as readGgufHeader. */
export async function readGgufModel(file: string): Promise<GgufModel> {
  const first = await readGgufHeader(file);
  const metadata = new MetadataReader(file, first.metadata);
  const files = partsOf(file, metadata);
  const others: GgufHeader[] = [];
  // One by one: a set may have more parts than the process may have open files.
  for (const part of files.slice(1)) others.push(await readGgufHeader(part));
  const tensors = new Map<string, TensorEntry>();
  [first, ...others].forEach((header, index) => addTensors(files, index, header, tensors));
  const total = metadata.number('split.tensors.count');
  if (files.length > 1 && total !== undefined && total !== tensors.size) {
    throw new CheckpointError(
      file,
      `metadata 'split.tensors.count' is ${total}, but its ${files.length} parts have ${tensors.size} tensors`,
    );
  }
  return { file, files, metadata, endTokens: first.endTokens, tensors };
}

function partsOf(file: string, metadata: MetadataReader): string[] {
  const count = metadata.number('split.count') ?? 1;
  if (count <= 1) return [file];
  const part = PART.exec(path.basename(file));
  const [, prefix, number, total] = part ?? ['', '', '', ''];
  if (part === null || Number(total) !== count || count > MAX_PARTS) {
    throw new CheckpointError(
      file,
      `metadata 'split.count' is ${count}; such a set has parts named NAME-00001-of-${`${count}`.padStart(5, '0')}.gguf`,
    );
  }
  if (Number(number) !== 1 || metadata.number('split.no') !== 0) {
    throw new CheckpointError(
      file,
      `it is part ${number} of a set; name the first, ${prefix}-00001-of-${total}.gguf`,
    );
  }
  return partsOfSet(path.basename(file)).map((name) => path.join(path.dirname(file), name));
}

function addTensors(
  files: readonly string[],
  index: number,
  { metadata, tensors }: GgufHeader,
  to: Map<string, TensorEntry>,
): void {
  if (index > 0 && metadata.get('split.no') !== index) {
    throw new CheckpointError(
      files[index],
      `metadata 'split.no' is ${show(metadata.get('split.no'))}; of this part it must be ${index}`,
    );
  }
  const count = metadata.get('split.count');
  if (index > 0 && count !== undefined && count !== files.length) {
    throw new CheckpointError(
      files[index],
      `metadata 'split.count' is ${show(count)}; of the first part it is ${files.length}`,
    );
  }
  for (const { name, type, shape, offset, numBytes } of tensors) {
    if (to.has(name)) {
      throw new CheckpointError(files[index], `tensor ${show(name)} is in another part too`);
    }
    to.set(name, { dtype: type as TensorEntry['dtype'], shape, file: index, offset, numBytes });
  }
}
