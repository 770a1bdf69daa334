/** A tokenizer.json's decoder as a stream of text, for tokens that come one by one. */
import { NotSupportedError } from '../errors';
import { byteLevelBytes } from './byteLevel';
import {
  bpePieces,
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
  whole,
} from './decoderStages';
import { createDecoder } from './huggingface';
import { unfinishedBytes, utf8 } from './utf8Stream';

/** One decoder of tokenizer.json, which the library has read without complaint. */
interface DecoderJson {
  type: string;
  decoders?: readonly DecoderJson[];
  [field: string]: unknown;
}

/** A stage, and whether it hands on one text instead of a list of pieces. */
interface PlannedStage {
  make: StageFactory;
  fuses?: boolean;
}

/** Stands before a continuation: no token is it, no decoder drops it. */
const CONTEXT = '\u0001';

const flatten = (decoder: DecoderJson): DecoderJson[] =>
  decoder.type === 'Sequence' ? (decoder.decoders ?? []).flatMap(flatten) : [decoder];

/** A panic of the library's ends the process. */
const isSafe = ({ type, stop }: DecoderJson) => type !== 'Strip' || stop === 0;

/** The text that a Replace looks for; null when it is a regular expression that is more than text. */
function literalPattern({ pattern, content }: DecoderJson): string | null {
  const { String: text, Regex: regex } = pattern as { String?: string; Regex?: string };
  if (text !== undefined) return text;
  if (regex === undefined || /[\\^$.|?*+()[\]{}]/.test(regex)) return null;
  return (content as string).includes('$') ? null : regex;
}

/** A Replace that takes one space from the beginning of a text: llm-jp's, for one. */
const stripsFirstSpace = ({ pattern, content }: DecoderJson) =>
  (pattern as { Regex?: string }).Regex === '(?<!\\n)^ ' && content === '';

/** What a decoder does to each token whatever its place; null for one that looks at the place. */
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
  // Only the library's regular expressions are its own.
  const library = createDecoder(decoder);
  return (piece) => library.decode([piece]);
}

/** Of a Metaspace: the character that stands for a space, and whether the first token loses it. */
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

/** Each replacement after the other. */
const replacements =
  (pairs: readonly (readonly [string, string])[]): StageFactory =>
  (next) =>
    pairs.reduceRight((after, [pattern, content]) => replaceText(pattern, content)(after), next);

/** As a list of one piece: the text. */
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

/** Without a decoder the library writes a space between tokens. */
const spaced: PlannedStage = {
  make: mapFirst((piece, isFirst) => (isFirst ? piece : ` ${piece}`)),
};

/** How a checkpoint's tokens become text. */
export class StreamDecoder {
  /** What happens to each token alone, first of all: done once for each. */
  private readonly maps: ((piece: string) => string)[] = [];
  private readonly stages: PlannedStage[] = [];
  /** Whether what follows the maps is ByteLevel. */
  readonly takesBytes: boolean;
  private readonly hasByteFallback: boolean;
  /** Whether the library decodes without panic: its Strip does not survive a piece that its ends meet in. */
  readonly isSafe: boolean;

  /** `decoder`: that of tokenizer.json; null for none. */
  constructor(decoder: unknown) {
    const decoders = decoder ? flatten(decoder as DecoderJson) : [];
    this.isSafe = decoders.every(isSafe);
    let at = 0;
    for (let map; at < decoders.length && (map = pieceMap(decoders[at])) !== null; at++) {
      this.maps.push(map);
    }
    this.takesBytes = decoders.at(at)?.type === 'ByteLevel';
    this.hasByteFallback = decoders.at(at)?.type === 'ByteFallback';
    if (!decoder) this.stages.push(spaced);
    let isText = false;
    for (; at < decoders.length; at++) {
      const stage: PlannedStage | null = (isText ? textStage : listStage)(decoders[at]);
      if (stage === null && isText) {
        this.stages.push({ make: wholeOf([decoders[at]], true) });
        continue;
      }
      if (stage === null) {
        this.stages.push({ make: wholeOf(decoders.slice(at), false) });
        return;
      }
      this.stages.push(stage);
      isText ||= stage.fuses === true;
    }
  }

  /** What a token is after what happens to it whatever its place. */
  piece(token: string): string {
    return this.maps.reduce((piece, map) => map(piece), token);
  }

  /** The bytes of a piece where those are what it stands for, as in byte-level BPE; else null. */
  bytes(piece: string): Uint8Array | null {
    if (this.takesBytes) return byteLevelBytes(piece);
    const byte = this.hasByteFallback ? fallbackByte(piece) : null;
    return byte === null ? null : Uint8Array.of(byte);
  }

  /** A new text, for pieces. It goes on after another with `continues`. */
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

/** Decoders the first of which does not go in parts, by the library, when all the pieces are there. */
function wholeOf(decoders: readonly DecoderJson[], isText: boolean): StageFactory {
  if (!decoders.every(isSafe)) {
    throw new NotSupportedError(
      'a decoder',
      `its decoder has a Strip at the end of pieces after ${decoders[0].type}, which is not supported`,
    );
  }
  const library = createDecoder({ type: 'Sequence', decoders });
  return whole(isText, (pieces) => library.decode(pieces));
}

/** The text of bytes that begin with a character; null when they do not end with one. */
export function wholeText(bytes: Uint8Array): string | null {
  return unfinishedBytes(bytes) === 0 ? utf8(bytes) : null;
}
