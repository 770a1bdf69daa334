/** Hashes of full KV cache blocks: of a block's tokens and all tokens before them. */
import { hash } from 'node:crypto';

/** SHA-256 as a binary string of 32 characters; collisions are not handled. */
export type BlockHash = string;

const HASH_BYTES = 32;

/** Chains hashes block by block (vLLM's hash_block_tokens). */
export class BlockHasher {
  /** The parent block's hash, then the block's tokens. */
  private readonly input: Buffer;
  private readonly tokens: Int32Array;

  constructor(
    /** Tokens. */
    readonly blockSize: number,
  ) {
    const memory = new ArrayBuffer(HASH_BYTES + blockSize * Int32Array.BYTES_PER_ELEMENT);
    this.input = Buffer.from(memory);
    this.tokens = new Int32Array(memory, HASH_BYTES);
  }

  /** The parent hash of a first block, distinct for each salt and cache generation. */
  root(salt: string, generation: number): BlockHash {
    return hash('sha256', `${generation} ${salt}`, 'binary');
  }

  /** Hash of the block of `tokenIds` [blockSize] whose preceding block has the hash `parent`. */
  next(parent: BlockHash, tokenIds: Int32Array): BlockHash {
    this.input.write(parent, 'binary');
    this.tokens.set(tokenIds);
    return hash('sha256', this.input, 'binary');
  }
}
