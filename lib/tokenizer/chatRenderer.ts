/** Has conversations put into words by chat templates, on a thread that is started for the first of them. */
import { InvalidRequestError, TokenizerFailedError } from '../errors';
import { ThreadClient } from './threadClient';
import type {
  Conversation,
  Rendered,
  RenderSettings,
  TemplateRequests,
  TemplateSetUp,
} from './threadMessages';
import type { TokenTable } from './tokenTable';

/** Conversations, and about as many messages, that go to the thread at once. */
const MAX_CONVERSATIONS = 16;
const MAX_MESSAGES = 512;

/** What one request to the thread may take; a template takes about a second and 2 GB at most, by its steps. */
const LIMITS = {
  /** Reached by a step that costs more than it counts (jinja/budget.ts). */
  milliseconds: 60_000,
  /**
   * Of the thread's heap. It must not be reached by strings: where one large string exhausts the heap,
   * the process ends, not the thread.
   */
  heapMegabytes: 4096,
};

interface Job {
  conversations: readonly Conversation[];
  settings: RenderSettings;
  isWanted: () => boolean;
  rendered: Rendered[];
  resolve: (rendered: Rendered[]) => void;
  reject: (error: unknown) => void;
}

export class ChatRenderer {
  private readonly thread: ThreadClient<TemplateRequests>;
  /** Requests take turns: each has a slice of the thread's time, or one conversation rendered. */
  private readonly jobs: Job[] = [];
  private isWorking = false;
  private closesWhenIdle = false;

  /** `setUp` is asked when the first conversation comes. */
  constructor(
    private readonly setUp: () => TemplateSetUp,
    private readonly limits: Partial<typeof LIMITS> = {},
  ) {
    const { heapMegabytes } = { ...LIMITS, ...limits };
    this.thread = new ThreadClient('templateThread', 'uniproc chat templates', {
      maxOldGenerationSizeMb: heapMegabytes,
    });
  }

  /**
   * Each conversation's text, in order, up to the first that fails, or up to where `isWanted` became false.
   * Conversations and settings are plain data and do not change. Rejects with InvalidRequestError for a
   * template that takes too much time or memory, with TokenizerFailedError where the thread died, with
   * ShutdownError after `close`.
   */
  render(
    conversations: readonly Conversation[],
    settings: RenderSettings,
    isWanted: () => boolean = () => true,
  ): Promise<Rendered[]> {
    return new Promise((resolve, reject) => {
      this.jobs.push({ conversations, settings, isWanted, rendered: [], resolve, reject });
      if (!this.isWorking) void this.work();
    });
  }

  close(): Promise<void> {
    return this.thread.close();
  }

  /** `close`, once the calls that wait have their answers. */
  closeWhenIdle(): void {
    this.closesWhenIdle = true;
    if (!this.isWorking) void this.close();
  }

  /** One request is with the thread at a time, so that it is known which one a thread that dies worked for. */
  private async work(): Promise<void> {
    this.isWorking = true;
    for (let job = this.jobs.shift(); job !== undefined; job = this.jobs.shift()) {
      try {
        const isDone = !job.isWanted() || (await this.renderSlice(job));
        if (isDone) job.resolve(job.rendered);
        else this.jobs.push(job);
      } catch (error) {
        job.reject(error);
      }
    }
    this.isWorking = false;
    if (this.closesWhenIdle) await this.close();
  }

  /** Whether the request is done. */
  private async renderSlice({ conversations, settings, rendered }: Job): Promise<boolean> {
    const next: Conversation[] = [];
    let numMessages = 0;
    for (let i = rendered.length; i < conversations.length; i++) {
      if (next.length === MAX_CONVERSATIONS || numMessages >= MAX_MESSAGES) break;
      next.push(conversations[i]);
      numMessages += conversations[i].length;
    }
    for (const one of await this.ask(next, settings)) {
      rendered.push(one);
      if ('failure' in one) return true;
    }
    return rendered.length === conversations.length;
  }

  private async ask(
    conversations: readonly Conversation[],
    settings: RenderSettings,
  ): Promise<Rendered[]> {
    const { thread } = this;
    const { heapMegabytes, milliseconds } = { ...LIMITS, ...this.limits };
    if (!thread.isRunning) thread.openWith('setUp', this.setUp());
    const timer = setTimeout(() => {
      const message = `the chat template takes more than ${milliseconds} ms; it was given up`;
      thread.kill(new InvalidRequestError(message));
    }, milliseconds);
    try {
      return await thread.request('render', { conversations, settings });
    } catch (error) {
      const { code } = ((error as Error).cause ?? {}) as { code?: unknown };
      if (!(error instanceof TokenizerFailedError) || code !== 'ERR_WORKER_OUT_OF_MEMORY')
        throw error;
      throw new InvalidRequestError(
        `the chat template takes more than ${heapMegabytes} MB of memory`,
        { cause: error },
      );
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Does not hold the tokenizer: its renderer may outlive it. */
export function rendererOf(
  { vocabulary }: TokenTable,
  setUp: Omit<TemplateSetUp, 'specialTexts'>,
): ChatRenderer {
  return new ChatRenderer(() => {
    const specialTexts: string[] = [];
    for (let id = 0; id < vocabulary.size; id++) {
      if (vocabulary.isSpecial(id)) specialTexts.push(vocabulary.token(id));
    }
    return { ...setUp, specialTexts };
  });
}
