/** `uniproc inspect`: what a model is and needs, from its configuration and the headers of its files. */
import path from 'node:path';
import { fileExists, readJsonObject } from './config/jsonFile';
import { createUniprocConfig } from './config/engineArgs';
import type { UniprocConfig } from './config/uniprocConfig';
import { ConfigError } from './errors';
import { localFolder } from './hub/localFolder';
import { nameOfSnapshot } from './hub/cache';
import { ModelLoader } from './model/load';
import { isGguf } from './model/gguf/files';
import { readGgufTable } from './model/gguf/table';
import { FAMILIES } from './model/registry';
import { readTensorTable } from './model/safetensors';
import { native } from './native';
import { pullProgressBar } from './progressBar';
import { engineArgsOf, parseFlags } from './server/engineFlags';
import { readGgufTokenizer } from './tokenizer/gguf/ggufTokenizer';
import { readTokenizerFiles } from './tokenizer/tokenizerFiles';
import { Worker } from './worker/worker';

export const INSPECT_USAGE = `Usage: uniproc inspect [options] MODEL

Prints a model's family, sizes, weight formats, memory need, tokenizer and chat template. Reads the
configuration and the headers of the weights' files. MODEL is a checkpoint's folder, or its name on the
Hugging Face hub, which is downloaded unless the cache has it.

Options: --revision REVISION, and the engine's (docs/options.md) in kebab case: --max-model-len 4096.
`;

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];

/** Bytes in the largest unit below them. */
function sizeOf(bytes: number): string {
  let unit = 0;
  let value = bytes;
  for (; value >= 1024 && unit < UNITS.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

const count = (value: number) => value.toLocaleString('en-US');

/** The lines to print. Rejects with ConfigError, CheckpointError, UnsupportedModelError or as `pull`. */
export async function inspectModel(args: readonly string[]): Promise<string> {
  const { values, positionals } = parseFlags('inspect', args, { revision: { type: 'string' } });
  if (positionals.length !== 1) {
    throw new ConfigError(`uniproc inspect takes one model, not ${positionals.length}`);
  }
  const model = (await localFolder(positionals[0], {
    revision: values.revision as string | undefined,
    onProgress: process.stderr.isTTY ? pullProgressBar(process.stderr) : undefined,
  })) as string;
  const config = await createUniprocConfig({ ...engineArgsOf(values), model });
  const lines: [string, string][] = [
    ...modelLines(config),
    ...(await weightLines(config)),
    ...cacheLines(config),
    ...(await tokenizerLines(config.model.tokenizer)),
  ];
  return lines.map(([label, value]) => `${label.padEnd(14)} ${value}\n`).join('');
}

function modelLines({ model }: UniprocConfig): [string, string][] {
  const { transformer, path: folder, maxModelLen } = model;
  const { architecture, multimodal, pooling, spec, quantization } = transformer;
  const family = FAMILIES.get(architecture)?.modelType ?? architecture;
  const task =
    pooling === null
      ? 'generates'
      : `embeds by the last token${pooling.normalize ? ', normalised' : ''}`;
  const heads = `${spec.numHeads} heads and ${spec.numKvHeads} of keys and values, of ${spec.headDim}`;
  const windows = new Set(
    spec.slidingWindows.filter((window) => window > 0 && window < maxModelLen),
  );
  const { experts } = spec;
  return [
    ['model', nameOfSnapshot(folder) ?? folder],
    ['architecture', `${multimodal === null ? '' : `${multimodal}: `}${architecture} (${family})`],
    ['task', task],
    ['layers', `${spec.numLayers} of ${spec.hiddenSize}, ${heads}`],
    ...(experts === null
      ? []
      : ([['experts', `${experts.numExperts}, ${experts.numExpertsPerToken} for each token`]] as [
          string,
          string,
        ][])),
    ...(windows.size === 0 ? [] : ([['windows', [...windows].join(', ')]] as [string, string][])),
    ['vocabulary', count(spec.vocabSize)],
    [
      'positions',
      `${count(transformer.maxPositionEmbeddings)}, of which ${count(maxModelLen)} are used (max-model-len)`,
    ],
    ['quantization', isGguf(folder) ? 'gguf' : (quantization?.method ?? 'none')],
  ];
}

async function weightLines(config: UniprocConfig): Promise<[string, string][]> {
  const loader = new ModelLoader(config, (...model) => native().declareParameters(...model));
  // Whether a head equals the embedding needs the weights; config.json says that it does.
  await loader.examine({ areEqual: () => Promise.resolve(true) }, 1);
  const { path: folder, transformer } = config.model;
  const { files, tensors } = await (isGguf(folder)
    ? readGgufTable(folder, transformer.spec)
    : readTensorTable(folder));
  const stored = new Map<string, number>();
  for (const { dtype, numBytes } of tensors.values()) {
    stored.set(dtype, (stored.get(dtype) ?? 0) + numBytes);
  }
  const { tensorParallelSize: worldSize } = config.parallel;
  const bytes = Object.entries(loader.weightBytes({ rank: 0, worldSize }));
  const total = bytes.reduce((sum, [, size]) => sum + size, 0);
  const list = (entries: Iterable<[string, number]>) =>
    Array.from(entries, ([type, size]) => `${type} ${sizeOf(size)}`).join(', ');
  const rank = worldSize > 1 ? ` for each of ${worldSize} ranks` : '';
  return [
    ['files', `${count(tensors.size)} tensors in ${count(files.length)}: ${list(stored)}`],
    ['weights', `${sizeOf(total)} in memory${rank}: ${list(bytes)}`],
  ];
}

/** What the KV cache needs; its layers as the worker has them. */
function cacheLines(config: UniprocConfig): [string, string][] {
  const worker = new Worker({
    config,
    localRank: 0,
    rank: 0,
    distributedInitMethod: '',
    isDriverWorker: true,
  });
  const { maxModelLen } = config.model;
  let perBlock = 0;
  let longest = 0;
  for (const layer of worker.getKvCacheSpec().values()) {
    perBlock += layer.pageSizeBytes;
    longest += layer.maxMemoryUsageBytes(maxModelLen, config.scheduler.maxNumBatchedTokens);
  }
  const perToken = sizeOf(perBlock / config.cache.blockSize);
  return [
    ['KV cache', `${perToken} for each token, ${sizeOf(longest)} for ${count(maxModelLen)} tokens`],
  ];
}

async function tokenizerLines(folder: string): Promise<[string, string][]> {
  if (!isGguf(folder) && !(await fileExists(path.join(folder, 'tokenizer.json')))) {
    return [['tokenizer', 'none']];
  }
  const { file, templates } = await readTokenizerFiles(folder);
  const { model, added_tokens: added } = (
    isGguf(file) ? JSON.parse((await readGgufTokenizer(file)).text) : await readJsonObject(file)
  ) as { model?: { type?: string; vocab?: object }; added_tokens?: unknown[] };
  const names = templates.map(({ name, file: source }) => `${name} (${path.basename(source)})`);
  const size = count(Object.keys(model?.vocab ?? {}).length);
  return [
    ['tokenizer', `${model?.type ?? 'unknown'} of ${size}, ${added?.length ?? 0} added`],
    ['chat template', names.join(', ') || 'none'],
  ];
}
