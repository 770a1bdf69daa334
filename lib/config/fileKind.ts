/** What a file is, by its first bytes: for errors about a file in place of a checkpoint's. */
import { constants } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import path from 'node:path';

export interface FileKind {
  group: 'lfs' | 'gguf' | 'safetensors' | 'pickle' | 'foreign' | 'archive' | 'other';
  /** With its article: 'a zip archive'. */
  name: string;
}

/** Bytes at a file's start that tell its kind; tar's mark ends at 262. */
export const HEAD_BYTES = 512;

const LFS_POINTER = 'version https://git-lfs.github.com/spec/';

/** [offset, mark in latin1, kind]; the first that matches counts. */
const MARKS: readonly [number, string, FileKind['group'], string][] = [
  [0, LFS_POINTER, 'lfs', 'a Git LFS pointer, not the file that it stands for'],
  [0, 'GGUF', 'gguf', "a GGUF file, llama.cpp's format"],
  [0, 'lmgg', 'foreign', "a GGML file, llama.cpp's old format"],
  [0, 'fmgg', 'foreign', "a GGML file, llama.cpp's old format"],
  [0, 'tjgg', 'foreign', "a GGML file, llama.cpp's old format"],
  [0, 'PK\x03\x04', 'archive', 'a zip archive'],
  [0, 'PK\x05\x06', 'archive', 'an empty zip archive'],
  [0, '\x1f\x8b', 'archive', 'a gzip archive'],
  [0, '\x28\xb5\x2f\xfd', 'archive', 'a zstd archive'],
  [0, '\xfd7zXZ\0', 'archive', 'an xz archive'],
  [0, 'BZh', 'archive', 'a bzip2 archive'],
  [0, "7z\xbc\xaf'\x1c", 'archive', 'a 7z archive'],
  [0, 'Rar!\x1a\x07', 'archive', 'a rar archive'],
  [0, '\x04\x22\x4d\x18', 'archive', 'an lz4 archive'],
  [257, 'ustar', 'archive', 'a tar archive'],
  [0, '\x89HDF\r\n\x1a\n', 'foreign', 'an HDF5 file, as Keras writes'],
];

/** Kinds without a mark of their own, by the end of the name. */
const ENDINGS: Readonly<Record<string, [FileKind['group'], string]>> = {
  '.gguf': ['foreign', 'a damaged GGUF file: it does not begin with GGUF'],
  '.pt': ['pickle', 'a file of PyTorch'],
  '.pth': ['pickle', 'a file of PyTorch'],
  '.msgpack': ['foreign', 'a file of Flax'],
  '.onnx': ['foreign', 'an ONNX file'],
  '.safetensors': ['other', 'a damaged safetensors file'],
};

/** Whether the file stands in place of a large one that Git LFS did not fetch. */
export function isLfsPointer(head: Buffer): boolean {
  return head.subarray(0, LFS_POINTER.length).toString('latin1') === LFS_POINTER;
}

/** What an error says of a pointer. */
export const LFS_POINTER_MESSAGE =
  'it is a Git LFS pointer, not the file that it stands for; run git lfs pull in its folder, or ' +
  'download it again';

/** Kind of a file that begins with `head`. */
export function kindOfBytes(head: Buffer, fileName: string): FileKind {
  const text = head.subarray(0, HEAD_BYTES).toString('latin1');
  if (isSafetensors(text)) return { group: 'safetensors', name: 'a safetensors file' };
  if (isPickle(text)) return { group: 'pickle', name: "a pickle, PyTorch's format" };
  const mark = MARKS.find(([offset, bytes]) => text.startsWith(bytes, offset));
  if (mark) return { group: mark[2], name: mark[3] };
  if (text === '') return { group: 'other', name: 'an empty file' };
  if (/^\s*<(!doctype|html)/i.test(text)) {
    return { group: 'other', name: 'an HTML page, which a failed download leaves' };
  }
  const [group, name] = ENDINGS[path.extname(fileName).toLowerCase()] ?? [
    'other',
    /^\s*[{[]/.test(text) ? 'a JSON file' : 'a file',
  ];
  return { group, name };
}

/** The header's length, u64 little-endian and below 4 GiB, then the header, a JSON object. */
function isSafetensors(head: string): boolean {
  return head.startsWith('\0\0\0\0{', 4);
}

const PICKLE_PROTOCOLS = new Set(['\x02', '\x03', '\x04', '\x05']);

/** PyTorch writes a zip archive that begins with data.pkl; before version 1.6, a pickle of protocol 2. */
function isPickle(head: string): boolean {
  const isZip = head.startsWith('PK\x03\x04') && head.includes('/data.pkl', 30);
  return (
    isZip ||
    (head.startsWith('\x80') &&
      PICKLE_PROTOCOLS.has(head[1]) &&
      /^[\x80-\x95(}\]c]/.test(head.slice(2)))
  );
}

/**
 * Kind of the file; null if it is a folder, a pipe or another thing without bytes to look at. Reads
 * 512 bytes and never waits for a pipe's writer. Rejects with the system's error.
 */
export async function kindOfFile(file: string): Promise<FileKind | null> {
  if (!(await stat(file)).isFile()) return null;
  const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
    return kindOfBytes(buffer.subarray(0, bytesRead), file);
  } finally {
    await handle.close();
  }
}
