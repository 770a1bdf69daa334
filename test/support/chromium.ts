/** Headless Chromium, driven by the DevTools protocol over its pipes. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';

const PROGRAM = process.env.UNIPROC_CHROMIUM ?? 'chromium';

export const hasChromium = spawnSync(PROGRAM, ['--version']).status === 0;

interface Message {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

export class Chromium {
  /** Events of the page, by arrival. */
  readonly events: { method: string; params: Record<string, unknown> }[] = [];
  private readonly folder = mkdtempSync(path.join(tmpdir(), 'uniproc-chromium-'));
  private readonly child: ChildProcess;
  private readonly waiting = new Map<number, (message: Message) => void>();
  private sessionId: string | undefined;
  private numCommands = 0;

  private constructor() {
    const flags =
      '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking ' +
      `--disable-component-update --disable-sync --remote-debugging-pipe --user-data-dir=${this.folder}`;
    this.child = spawn(PROGRAM, flags.split(' '), {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    });
    let rest = '';
    (this.child.stdio[4] as Readable).setEncoding('utf8').on('data', (data: string) => {
      const messages = (rest + data).split('\0');
      rest = messages.pop() ?? '';
      for (const message of messages) this.take(JSON.parse(message) as Message);
    });
  }

  /** Opens the page at `url`. */
  static async open(url: string): Promise<Chromium> {
    const browser = new Chromium();
    const { targetId } = await browser.send('Target.createTarget', { url: 'about:blank' });
    const { sessionId } = await browser.send('Target.attachToTarget', { targetId, flatten: true });
    browser.sessionId = sessionId as string;
    for (const domain of ['Network', 'Log', 'Runtime', 'Page'])
      await browser.send(`${domain}.enable`);
    await browser.send('Page.navigate', { url });
    return browser;
  }

  private take({ id, method, params = {}, ...message }: Message): void {
    if (id !== undefined) this.waiting.get(id)?.(message);
    else if (method !== undefined) this.events.push({ method, params });
  }

  async send(method: string, params: object = {}): Promise<Record<string, unknown>> {
    const id = ++this.numCommands;
    const answer = new Promise<Message>((resolve) => this.waiting.set(id, resolve));
    const { sessionId } = this;
    (this.child.stdio[3] as Writable).write(
      `${JSON.stringify({ id, method, params, sessionId })}\0`,
    );
    const { result, error } = await answer;
    if (error !== undefined) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  }

  /** The value of an expression in the page. */
  async evaluate(expression: string): Promise<unknown> {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return (result as { value?: unknown }).value;
  }

  /** Waits until an expression is true. */
  async until(expression: string): Promise<void> {
    const end = Date.now() + 100_000;
    while ((await this.evaluate(expression)) !== true) {
      if (Date.now() > end) throw new Error(`it never came true: ${expression}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async close(): Promise<void> {
    const exited = once(this.child, 'exit');
    this.sessionId = undefined;
    // Its processes end with it, so the folder can go.
    void this.send('Browser.close');
    await exited;
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}
