/** Renders conversations on the template thread, which the first one starts. */
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

/** Most conversations, and about the most messages, in one request to the thread. */
const MAX_CONVERSATIONS = 16;
const MAX_MESSAGES = 512;

/** Limits of one request to the thread; its step budget holds a template to about 1 s and 2 GB. */
const LIMITS = {
  /** For steps that cost more than they spend (jinja/budget.ts). */
  milliseconds: 60_000,
  /**
   * Size of the thread's heap. Strings must not exhaust it: V8 then ends the process instead of the
   * thread.
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
  /** Served round robin: each job gets one time slice, or one conversation. */
  private readonly jobs: Job[] = [];
  private isWorking = false;
  private closesWhenIdle = false;

  /** `setUp` is called before the first conversation. */
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
   * Renders conversations in order, until one fails or `isWanted` returns false. Conversations and
   * settings must be plain data that does not change. Rejects with InvalidRequestError for a template
   * that takes too much time or memory, with TokenizerFailedError if the thread died, with
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

  /** Closes after the pending calls have settled. */
  closeWhenIdle(): void {
    this.closesWhenIdle = true;
    if (!this.isWorking) void this.close();
  }

  /** Sends one request at a time, so that a dying thread fails only the job that it was running. */
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

  /** Returns whether the job is done. */
  private async renderSlice({ conversations, settings, rendered }: Job): Promise<boolean> {
    const next: Conversation[] = [];
    let numMessages = 0;
    for (let i = rendered.length; i < conversations.length; i++) {
      if (next.length === MAX_CONVERSATIONS || numMessages >= MAX_MESSAGES) break;
      next.push(conversations[i]);
      numMessages += conversations[i].length;
    }
    for (const one of await this.requestRender(next, settings)) {
      rendered.push(one);
      if ('failure' in one) return true;
    }
    return rendered.length === conversations.length;
  }

  private async requestRender(
    conversations: readonly Conversation[],
    settings: RenderSettings,
  ): Promise<Rendered[]> {
    const { thread } = this;
    const { heapMegabytes, milliseconds } = { ...LIMITS, ...this.limits };
    if (!thread.isRunning) thread.setInitialRequest('setUp', this.setUp());
    const timer = setTimeout(() => {
      const message = `the chat template did not finish within ${milliseconds} ms and was stopped`;
      thread.kill(new InvalidRequestError(message));
    }, milliseconds);
    try {
      return await thread.request('render', { conversations, settings });
    } catch (error) {
      const { code } = ((error as Error).cause ?? {}) as { code?: unknown };
      if (!(error instanceof TokenizerFailedError) || code !== 'ERR_WORKER_OUT_OF_MEMORY')
        throw error;
      throw new InvalidRequestError(
        `the chat template exceeded its limit of ${heapMegabytes} MB of memory`,
        { cause: error },
      );
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Holds no reference to the tokenizer, which the renderer may outlive. */
export function createRenderer(
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
