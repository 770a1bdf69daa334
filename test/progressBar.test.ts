import { Call } from '../lib/engine/call';
import { drawCall, loadProgressBar } from '../lib/progressBar';

/** Records the output to a terminal of this many columns. */
class FakeTerminal {
  readonly drawn: string[] = [];
  constructor(readonly columns?: number) {}

  write(text: string): boolean {
    this.drawn.push(text);
    return true;
  }

  get stream(): NodeJS.WriteStream {
    return this as unknown as NodeJS.WriteStream;
  }

  /** The current line. */
  get line(): string | undefined {
    const last = this.drawn.at(-1);
    expect(last?.startsWith('\r\x1b[K')).toBe(true);
    return last?.slice(4);
  }
}

const load = (bytes: number, tensors: number) => ({
  bytes,
  totalBytes: 200e6,
  tensors,
  totalTensors: 10,
  bytesPerSecond: 2.34e9,
});

describe('a load', () => {
  test('shows share and rate, and is cleared when loading is complete', () => {
    const terminal = new FakeTerminal();
    const progress = loadProgressBar(terminal.stream);
    progress(load(50e6, 3));
    expect(terminal.line).toBe(
      'loading weights [========                      ] 25% of 200.0 MB, 2.3 GB/s',
    );
    progress(load(200e6, 10));
    expect(terminal.line).toBe('');
  });

  test('is redrawn only when it changes', () => {
    const terminal = new FakeTerminal();
    const progress = loadProgressBar(terminal.stream);
    progress(load(50e6, 3));
    progress(load(50.1e6, 3));
    expect(terminal.drawn).toHaveLength(1);
  });

  test.each([
    [40, 40],
    // A terminal of unknown width.
    [0, 74],
    [undefined, 74],
  ])('never needs a second line: of %p columns it takes %d', (columns, length) => {
    const terminal = new FakeTerminal(columns);
    loadProgressBar(terminal.stream)(load(50e6, 3));
    expect(terminal.line).toHaveLength(length);
  });
});

describe('a call', () => {
  beforeEach(() => {
    jest.useFakeTimers({ now: 0 });
  });

  afterEach(() => {
    jest.useRealTimers();
  });

  test('shows finished prompts and tokens per second until the call ends', () => {
    const terminal = new FakeTerminal();
    const call = new Call(4);
    const stop = drawCall(terminal.stream, call);
    expect(terminal.line).toMatch(/^\[ {30}\] 0\/4 prompts, 0 tokens\/s in, 0 out$/);
    call.numPromptTokens = 400;
    call.numOutputTokens = 1000;
    call.promptDone();
    jest.advanceTimersByTime(2000);
    expect(terminal.line).toBe(
      '[========                      ] 1/4 prompts, 200 tokens/s in, 500 out',
    );
    stop();
    expect(terminal.line).toBe('');
    const { length } = terminal.drawn;
    jest.advanceTimersByTime(10_000);
    expect(terminal.drawn).toHaveLength(length);
  });

  test('fits a terminal of 80 columns', () => {
    const terminal = new FakeTerminal();
    const call = new Call(256);
    const stop = drawCall(terminal.stream, call);
    for (let i = 0; i < 255; i++) call.promptDone();
    call.numPromptTokens = 99_999;
    call.numOutputTokens = 99_999;
    jest.advanceTimersByTime(1000);
    expect(terminal.line).toMatch(/255\/256 prompts, 99999 tokens\/s in, 99999 out$/);
    expect(terminal.line?.length).toBeLessThan(80);
    stop();
  });
});
