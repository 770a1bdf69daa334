/**
 * Compiled grammars of an engine, by what they were made of. The schema becomes a program on a
 * JavaScript thread of its own; the native grammar thread keeps the automata and fills the masks.
 */
import { show } from '../config/schema';
import type { StructuredOutputs } from '../config/structuredOutputs';
import {
  InvalidRequestError,
  InvalidStateError,
  ShutdownError,
  TokenizerFailedError,
} from '../errors';
import type { GrammarRequests } from '../grammar/threadMessages';
import { native } from '../native';
import type { NativeGrammarThread } from '../native/grammarThread';
import { startTimer } from '../timer';
import { ThreadClient } from '../tokenizer/threadClient';
import type { Tokenizer } from '../tokenizer/tokenizer';

/** Grammars kept for later requests. */
const MAX_KEPT = 32;
/** Milliseconds that one grammar may take to compile; others wait for it. */
const COMPILE_TIMEOUT_MS = 10_000;

/** Heap of the thread that compiles; a grammar that needs more ends it. */
const COMPILE_MEMORY_MB = 1024;

/** A grammar on the native thread. */
export interface Grammar {
  readonly id: number;
}

/** A grammar, and whether each call that asked for it still wants it. */
interface Kept {
  readonly grammar: Promise<Grammar>;
  readonly wanted: (() => boolean)[];
}

export class Grammars {
  private readonly compiler = new ThreadClient<GrammarRequests>(
    '../grammar/grammarThread',
    'uniproc grammar',
    { maxOldGenerationSizeMb: COMPILE_MEMORY_MB },
  );
  /** Started with the first grammar. */
  private thread: Promise<NativeGrammarThread> | null = null;
  /** The latest last. */
  private readonly kept = new Map<string, Kept>();
  private readonly compiled = new WeakMap<StructuredOutputs, Grammar>();
  /** The compilation in progress, which later ones wait for. */
  private latest: Promise<unknown> = Promise.resolve();
  private numGrammars = 0;
  private isShutDown = false;
  /** Frees grammars that no request and no cache holds. */
  private readonly unused = new FinalizationRegistry<{ id: number; thread: NativeGrammarThread }>(
    ({ id, thread }) => {
      if (!this.isShutDown) thread.removeGrammar(id);
    },
  );

  constructor(
    private readonly tokenizer: Tokenizer,
    /** The model's, which may be larger than the tokenizer's. */
    readonly vocabSize: number,
  ) {}

  /** The native thread, with the vocabulary. Rejects if the tokenizer is not supported. */
  private start(): Promise<NativeGrammarThread> {
    this.thread ??= this.startThread();
    // Another request tries again.
    this.thread.catch(() => (this.thread = null));
    return this.thread;
  }

  private async startThread(): Promise<NativeGrammarThread> {
    const { vocabulary, decoder } = this.tokenizer.tokens;
    const { bytes, offsets } = await this.compiler.request('tokenTexts', {
      vocabulary: vocabulary.packed,
      decoder: decoder.json,
    });
    if (this.isShutDown) throw shutDown();
    const thread = new (native().GrammarThread)('Grammars');
    await thread.setVocabulary(bytes, offsets, this.vocabSize);
    return thread;
  }

  /** The grammar if it is compiled. */
  of(outputs: StructuredOutputs): Grammar | null {
    return this.compiled.get(outputs) ?? null;
  }

  /**
   * The grammar, compiled if it was not, unless no call wants it any more once it is its turn. Rejects
   * with InvalidRequestError.
   */
  async compile(outputs: StructuredOutputs, isWanted = () => true): Promise<Grammar> {
    const known = this.of(outputs);
    if (known !== null) return known;
    const key = JSON.stringify(outputs);
    const kept = this.kept.get(key) ?? this.keep(key, outputs);
    kept.wanted.push(isWanted);
    // The latest last.
    this.kept.delete(key);
    this.kept.set(key, kept);
    try {
      const grammar = await kept.grammar;
      this.compiled.set(outputs, grammar);
      return grammar;
    } catch (error) {
      if (this.kept.get(key) === kept) this.kept.delete(key);
      throw error;
    } finally {
      kept.wanted.length = 0;
      for (const oldest of this.kept.keys()) {
        if (this.kept.size <= MAX_KEPT) break;
        this.kept.delete(oldest);
      }
    }
  }

  private keep(key: string, outputs: StructuredOutputs): Kept {
    const wanted: (() => boolean)[] = [];
    const checkWanted = () => {
      if (wanted.some((isWanted) => isWanted())) return;
      // A later call makes it anew.
      if (this.kept.get(key) === kept) this.kept.delete(key);
      throw new InvalidStateError('no call wants the grammar any more');
    };
    const kept: Kept = { grammar: this.make(outputs, checkWanted), wanted };
    return kept;
  }

  private async make(outputs: StructuredOutputs, checkWanted: () => void): Promise<Grammar> {
    if (this.isShutDown) throw shutDown();
    const thread = await this.start();
    // One at a time, since a grammar that takes too long ends the thread.
    const program = this.latest.then(() => {
      checkWanted();
      return this.compileProgram(outputs);
    });
    this.latest = program.catch(() => {});
    const grammar = { id: this.numGrammars++ };
    await thread.addGrammar(grammar.id, await program);
    this.unused.register(grammar, { id: grammar.id, thread });
    return grammar;
  }

  /** A special token that the vocabulary lacks would be a dead end. */
  private checkTokens(tokens: readonly string[]): void {
    const { specialNames } = this.tokenizer.tokens;
    const unknown = tokens.find((name) => !specialNames.has(name));
    if (unknown === undefined) return;
    throw new InvalidRequestError(
      `structuredOutputs.structuralTag: the vocabulary has no special token ${show(unknown)}`,
    );
  }

  private async compileProgram(outputs: StructuredOutputs): Promise<Int32Array> {
    const stop = startTimer(COMPILE_TIMEOUT_MS, () => {
      this.compiler.kill(
        new InvalidRequestError(
          `structuredOutputs: the grammar took more than ${COMPILE_TIMEOUT_MS} ms to compile; simplify it`,
        ),
      );
    });
    try {
      const { program, tokens } = await this.compiler.request('compile', outputs);
      this.checkTokens(tokens);
      return program;
    } catch (error) {
      const cause = error instanceof TokenizerFailedError ? error.cause : null;
      if ((cause as NodeJS.ErrnoException | null)?.code !== 'ERR_WORKER_OUT_OF_MEMORY') throw error;
      throw new InvalidRequestError(
        `structuredOutputs: the grammar took more than ${COMPILE_MEMORY_MB} MB to compile; simplify it`,
        { cause },
      );
    } finally {
      stop();
    }
  }

  /** The native thread of a compiled grammar. */
  get started(): Promise<NativeGrammarThread> {
    return this.start();
  }

  async shutdown(): Promise<void> {
    this.isShutDown = true;
    await this.compiler.close();
    const thread = await this.thread?.catch(() => null);
    await thread?.shutdown();
  }
}

function shutDown(): ShutdownError {
  return new ShutdownError('the engine was shut down');
}
