/** How far something long is, as one line of a terminal that is wiped when it is done. */
import type { LoadProgress } from './config/uniprocConfig';
import type { Call } from './engine/call';

const WIDTH = 30;
/** Milliseconds between two drawings of a call. */
const PERIOD_MS = 100;

/** A line that is written over itself. */
class StatusLine {
  private drawn = '';

  constructor(private readonly terminal: NodeJS.WriteStream) {}

  /** Cut to the terminal's width, where it has one: a line that wraps could not be wiped. */
  draw(text: string): void {
    const line = text.slice(0, this.terminal.columns || undefined);
    if (line === this.drawn) return;
    this.drawn = line;
    this.terminal.write(`\r\x1b[K${line}`);
  }

  wipe(): void {
    this.draw('');
  }
}

function bar(share: number): string {
  return `[${'='.repeat(Math.round(share * WIDTH)).padEnd(WIDTH)}]`;
}

/** A callback that draws the load of the weights. */
export function loadProgressBar(terminal: NodeJS.WriteStream): (progress: LoadProgress) => void {
  const line = new StatusLine(terminal);
  return ({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond }) => {
    const share = totalBytes > 0 ? bytes / totalBytes : 1;
    const size = `${(totalBytes / 1e6).toFixed(1)} MB`;
    const rate = `${(bytesPerSecond / 1e9).toFixed(1)} GB/s`;
    const figures = `${Math.floor(share * 100)}% of ${size}, ${rate}`;
    if (tensors < totalTensors) line.draw(`loading weights ${bar(share)} ${figures}`);
    else line.wipe();
  };
}

/**
 * Draws how far a call is, its prompts done and its mean rates in tokens per second so far, until
 * the function that it returns is called.
 */
export function drawCall(terminal: NodeJS.WriteStream, call: Call): () => void {
  const line = new StatusLine(terminal);
  const start = performance.now();
  const draw = () => {
    const { numPrompts, numPromptsDone, numPromptTokens, numOutputTokens } = call;
    const seconds = (performance.now() - start) / 1000;
    const rate = (numTokens: number) => (seconds > 0 ? Math.round(numTokens / seconds) : 0);
    const rates = `${rate(numPromptTokens)} tokens/s in, ${rate(numOutputTokens)} out`;
    const share = numPromptsDone / numPrompts;
    line.draw(`${bar(share)} ${numPromptsDone}/${numPrompts} prompts, ${rates}`);
  };
  draw();
  const timer = setInterval(draw, PERIOD_MS);
  // The call itself keeps the process alive as long as it must.
  timer.unref();
  return () => {
    clearInterval(timer);
    line.wipe();
  };
}
