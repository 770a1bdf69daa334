/** The bytes that each token of a vocabulary adds to a text. */
import { InvalidRequestError } from '../errors';
import { bytesOf, TOKEN_END_BYTE, tokenText } from './expression';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import { StreamDecoder } from '../tokenizer/streamDecoder';
import { TokenTable } from '../tokenizer/tokenTable';
import { type PackedVocabulary, Vocabulary } from '../tokenizer/vocabulary';

export interface TokenTexts {
  /**
   * Token `id` is bytes [offsets[id], offsets[id + 1]). A special token's are its name between
   * TOKEN_START_BYTE and TOKEN_END_BYTE; another token that has these bytes, which UTF-8 lacks, is empty.
   */
  bytes: Uint8Array<ArrayBuffer>;
  offsets: Uint32Array<ArrayBuffer>;
}

/** Decoders whose text of a token does not depend on the tokens around it. */
const INDEPENDENT = new Set(['ByteLevel', 'ByteFallback', 'Fuse', 'Metaspace', 'Replace', 'Strip']);

interface DecoderJson {
  type: string;
  decoders?: readonly DecoderJson[];
}

function typesOf(decoder: DecoderJson): string[] {
  return decoder.type === 'Sequence' ? (decoder.decoders ?? []).flatMap(typesOf) : [decoder.type];
}

/**
 * Throws InvalidRequestError if the text of a token depends on its neighbours, so that no mask of
 * tokens stands for a grammar.
 */
export function tokenTexts(vocabulary: PackedVocabulary, decoder: unknown): TokenTexts {
  const types = decoder === null ? ['none'] : typesOf(decoder as DecoderJson);
  const dependent = types.find((type) => !INDEPENDENT.has(type));
  if (dependent !== undefined) {
    throw new InvalidRequestError(
      `structuredOutputs: the tokenizer's decoder (${dependent}) writes a token differently by the tokens ` +
        'around it, which is not supported',
    );
  }
  const table = new TokenTable(new Vocabulary(vocabulary), new StreamDecoder(decoder));
  const { size } = table.vocabulary;
  const offsets = new Uint32Array(size + 1);
  let bytes = new Uint8Array(2 * vocabulary.bytes.length + 1024);
  let end = 0;
  for (let id = 0; id < size; id++) {
    if (table.has(id)) {
      const own = table.isSpecial(id)
        ? bytesOf(tokenText(table.vocabulary.token(id)))
        : plain(table, id);
      while (end + own.length > bytes.length) {
        const grown = new Uint8Array(2 * bytes.length);
        grown.set(bytes);
        bytes = grown;
      }
      bytes.set(own, end);
      end += own.length;
    }
    offsets[id + 1] = end;
  }
  return { bytes: bytes.slice(0, end), offsets };
}

/** The bytes of a token that is not special. */
function plain(table: TokenTable, id: number): Uint8Array {
  const own = table.decoder.bytes(table.piece(id)) ?? Buffer.from(textOf(table, id));
  return own.some((byte) => byte >= TOKEN_END_BYTE) ? new Uint8Array(0) : own;
}

/** The text that the token appends. */
function textOf(table: TokenTable, id: number): string {
  const detokenizer = new IncrementalDetokenizer({ tokens: table }, false);
  return detokenizer.append([id]) + detokenizer.finish();
}
