/** Streaming decoding with the decoder of a tokenizer.json. */
import { NotSupportedError } from '../errors';
import { byteLevelBytes } from './byteLevel';
import {
  bpePieces,
  bufferAll,
  ByteFallbackStage,
  ByteLevelStage,
  CLEANUP,
  cleanUp,
  ctcPieces,
  fallbackByte,
  mapFirst,
  mapPieces,
  replaceAll,
  replaceText,
  type Stage,
  type StageFactory,
  strip,
  stripText,
} from './decoderStages';
import { createDecoder } from './huggingface';
import { unfinishedBytes, utf8 } from './utf8Stream';

/** One decoder of a tokenizer.json that the library has accepted. */
interface DecoderJson {
  type: string;
  decoders?: readonly DecoderJson[];
  [field: string]: unknown;
}

/** A stage, and whether it joins pieces into one text. */
interface PlannedStage {
  make: StageFactory;
  fuses?: boolean;
}

/** Placeholder for the text before a continuation: no token equals it, no decoder drops it. */
const CONTEXT = '\u0001';

const flatten = (decoder: DecoderJson): DecoderJson[] =>
  decoder.type === 'Sequence' ? (decoder.decoders ?? []).flatMap(flatten) : [decoder];

/** Whether the library decodes it without a panic, which would end the process. */
const isSafe = ({ type, stop }: DecoderJson) => type !== 'Strip' || stop === 0;

/** A Replace's literal pattern; null for other regular expressions. */
function literalPattern({ pattern, content }: DecoderJson): string | null {
  const { String: text, Regex: regex } = pattern as { String?: string; Regex?: string };
  if (text !== undefined) return text;
  if (regex === undefined || /[\\^$.|?*+()[\]{}]/.test(regex)) return null;
  return (content as string).includes('$') ? null : regex;
}

/** Whether a Replace strips one leading space from the text, as llm-jp's does. */
const stripsFirstSpace = ({ pattern, content }: DecoderJson) =>
  (pattern as { Regex?: string }).Regex === '(?<!\\n)^ ' && content === '';

/** A decoder's map of each token; null if it depends on the token's position. */
function pieceMap(decoder: DecoderJson): ((piece: string) => string) | null {
  if (decoder.type === 'Strip') {
    const { content, start, stop } = decoder as unknown as Record<'start' | 'stop', number> & {
      content: string;
    };
    return (piece) => strip(piece, content, start, stop);
  }
  if (decoder.type !== 'Replace') return null;
  const pattern = literalPattern(decoder);
  if (pattern === '') return null;
  const { content } = decoder as unknown as { content: string };
  if (pattern !== null) return (piece) => replaceAll(piece, pattern, content);
  // JavaScript's regular expressions differ from the library's.
  const library = createDecoder(decoder);
  return (piece) => library.decode([piece]);
}

/** A Metaspace's replacement character, and whether it is removed from the first token. */
function metaspace(decoder: DecoderJson) {
  const { replacement, prepend_scheme, add_prefix_space } = decoder as {
    replacement?: string;
    prepend_scheme?: string;
    add_prefix_space?: boolean;
  };
  const scheme = prepend_scheme ?? (add_prefix_space === false ? 'never' : 'always');
  return { replacement: replacement as string, dropsFirst: scheme !== 'never' };
}

function listStage(decoder: DecoderJson): PlannedStage | null {
  switch (decoder.type) {
    case 'Fuse':
      return { make: (next) => next, fuses: true };
    case 'ByteLevel':
      return { make: (next) => new ByteLevelStage(next), fuses: true };
    case 'ByteFallback':
      return { make: (next) => new ByteFallbackStage(next) };
    case 'Metaspace': {
      const { replacement, dropsFirst } = metaspace(decoder);
      return {
        make: mapFirst((piece, isFirst) =>
          replaceAll(piece, replacement, isFirst && dropsFirst ? '' : ' '),
        ),
      };
    }
    case 'WordPiece': {
      const { prefix, cleanup } = decoder as unknown as { prefix: string; cleanup: boolean };
      return {
        make: mapFirst((piece, isFirst) => {
          const continues = piece.startsWith(prefix);
          const text = isFirst ? piece : continues ? piece.slice(prefix.length) : ` ${piece}`;
          return cleanup ? cleanUp(text) : text;
        }),
      };
    }
    case 'BPEDecoder': {
      const { suffix } = decoder as unknown as { suffix: string };
      return suffix === '' ? null : { make: bpePieces(suffix) };
    }
    case 'CTC': {
      const { pad_token, word_delimiter_token, cleanup } = decoder as unknown as {
        pad_token: string;
        word_delimiter_token: string;
        cleanup: boolean;
      };
      if (pad_token === '' || word_delimiter_token === '') return null;
      return { make: ctcPieces(pad_token, word_delimiter_token, cleanup) };
    }
    default: {
      const map = pieceMap(decoder);
      return map && { make: mapPieces(map) };
    }
  }
}

/** Applies replacements in order. */
const replacements =
  (pairs: readonly (readonly [string, string])[]): StageFactory =>
  (next) =>
    pairs.reduceRight((after, [pattern, content]) => replaceText(pattern, content)(after), next);

/** A decoder's stage after Fuse or ByteLevel, where the only piece is the text. */
function textStage(decoder: DecoderJson): PlannedStage | null {
  switch (decoder.type) {
    case 'Fuse':
      return { make: (next) => next };
    case 'Strip': {
      const { content, start, stop } = decoder as unknown as Record<'start' | 'stop', number> & {
        content: string;
      };
      return { make: stripText(content, start, stop) };
    }
    case 'Replace': {
      if (stripsFirstSpace(decoder)) return { make: stripText(' ', 1, 0) };
      const pattern = literalPattern(decoder);
      if (pattern === null || pattern === '') return null;
      return { make: replaceText(pattern, decoder.content as string) };
    }
    case 'Metaspace': {
      const { replacement, dropsFirst } = metaspace(decoder);
      return { make: replaceText(replacement, dropsFirst ? '' : ' ') };
    }
    case 'WordPiece':
      return { make: replacements(decoder.cleanup === true ? CLEANUP : []) };
    case 'BPEDecoder': {
      const { suffix } = decoder as unknown as { suffix: string };
      return suffix === '' ? null : { make: replaceText(suffix, '') };
    }
    default:
      return null;
  }
}

/** Without a decoder the library joins tokens with spaces. */
const joinWithSpaces: PlannedStage = {
  make: mapFirst((piece, isFirst) => (isFirst ? piece : ` ${piece}`)),
};

/** Converts a checkpoint's tokens to text. */
export class StreamDecoder {
  /** Leading decoders that map each token alone; their results are cached. */
  private readonly maps: ((piece: string) => string)[] = [];
  private readonly stages: PlannedStage[] = [];
  /** Whether ByteLevel follows the maps. */
  readonly takesBytes: boolean;
  private readonly hasByteFallback: boolean;
  /** Whether the library decodes without a panic: Strip panics on a piece that its two ends consume. */
  readonly isSafe: boolean;

  /** `json`: the decoder of tokenizer.json, or null. */
  constructor(readonly json: unknown) {
    const decoder = json;
    const decoders = decoder ? flatten(decoder as DecoderJson) : [];
    this.isSafe = decoders.every(isSafe);
    let at = 0;
    for (let map; at < decoders.length && (map = pieceMap(decoders[at])) !== null; at++) {
      this.maps.push(map);
    }
    this.takesBytes = decoders.at(at)?.type === 'ByteLevel';
    this.hasByteFallback = decoders.at(at)?.type === 'ByteFallback';
    if (!decoder) this.stages.push(joinWithSpaces);
    let isText = false;
    for (; at < decoders.length; at++) {
      const stage: PlannedStage | null = (isText ? textStage : listStage)(decoders[at]);
      if (stage === null && isText) {
        this.stages.push({ make: bufferedStage([decoders[at]], true) });
        continue;
      }
      if (stage === null) {
        this.stages.push({ make: bufferedStage(decoders.slice(at), false) });
        return;
      }
      this.stages.push(stage);
      isText ||= stage.fuses === true;
    }
  }

  /** Applies the position-independent decoders to a token. */
  piece(token: string): string {
    return this.maps.reduce((piece, map) => map(piece), token);
  }

  /** The bytes that a piece encodes (ByteLevel, ByteFallback); else null. */
  bytes(piece: string): Uint8Array | null {
    if (this.takesBytes) return byteLevelBytes(piece);
    const byte = this.hasByteFallback ? fallbackByte(piece) : null;
    return byte === null ? null : Uint8Array.of(byte);
  }

  /** Opens a stream of pieces for a new text; with `continues`, for the continuation of a text. */
  open(write: (text: string) => void, continues: boolean): Stage {
    let isContext = continues;
    const sink: Stage = {
      push: (text) => {
        if (text === '') return;
        if (isContext) {
          isContext = false;
          write(text.startsWith(CONTEXT) ? text.slice(CONTEXT.length) : text);
        } else {
          write(text);
        }
      },
      finish: () => undefined,
    };
    const first = this.stages.reduceRight((next, { make }) => make(next), sink);
    if (continues) first.push(CONTEXT);
    return first;
  }
}

/** Buffers all pieces and decodes them with the library, for decoders that cannot be streamed. */
function bufferedStage(decoders: readonly DecoderJson[], isText: boolean): StageFactory {
  if (!decoders.every(isSafe)) {
    throw new NotSupportedError(
      'a decoder',
      `decoder: a Strip with stop > 0 after ${decoders[0].type} is not supported`,
    );
  }
  const library = createDecoder({ type: 'Sequence', decoders });
  return bufferAll(isText, (pieces) => library.decode(pieces));
}

/** Decodes bytes that begin with a character; null if they end inside one. */
export function completeText(bytes: Uint8Array): string | null {
  return unfinishedBytes(bytes) === 0 ? utf8(bytes) : null;
}
