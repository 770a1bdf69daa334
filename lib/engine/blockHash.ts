/** Names for what a full block of the KV cache holds: its tokens and all that come before them. */
import { hash } from 'node:crypto';

/** SHA-256, 32 characters of a byte each: no two contents are ever met that share one. */
export type BlockHash = string;

const HASH_BYTES = 32;

/** Chains hashes block by block (as vLLM's hash_block_tokens). */
export class BlockHasher {
  /** The hash of the blocks before, then the block's tokens. */
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

  /** What comes before the first block: nothing, but no other salt's or generation's. */
  root(salt: string, generation: number): BlockHash {
    return hash('sha256', `${generation} ${salt}`, 'binary');
  }

  /** Of a block of `tokenIds` [blockSize] after the blocks that `parent` stands for. */
  next(parent: BlockHash, tokenIds: Int32Array): BlockHash {
    this.input.write(parent, 'binary');
    this.tokens.set(tokenIds);
    return hash('sha256', this.input, 'binary');
  }
}
