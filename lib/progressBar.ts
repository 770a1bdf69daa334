/** Progress as one line of a terminal, cleared at the end. */
import type { LoadProgress } from './config/uniprocConfig';
import type { Call } from './engine/call';
import type { PullProgress } from './hub/pull';

const WIDTH = 30;
/** Milliseconds between two updates of a call's progress. */
const PERIOD_MS = 100;

/** A terminal line that each update overwrites. */
class StatusLine {
  private drawn = '';

  constructor(private readonly terminal: NodeJS.WriteStream) {}

  /** Truncates to the terminal's width, if known: a wrapped line could not be cleared. */
  draw(text: string): void {
    const line = text.slice(0, this.terminal.columns || undefined);
    if (line === this.drawn) return;
    this.drawn = line;
    this.terminal.write(`\r\x1b[K${line}`);
  }

  clear(): void {
    this.draw('');
  }
}

function bar(share: number): string {
  return `[${'='.repeat(Math.round(share * WIDTH)).padEnd(WIDTH)}]`;
}

/** Returns a callback that draws the progress of loading weights. */
export function loadProgressBar(terminal: NodeJS.WriteStream): (progress: LoadProgress) => void {
  const line = new StatusLine(terminal);
  return ({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond }) => {
    const share = totalBytes > 0 ? bytes / totalBytes : 1;
    const size = `${(totalBytes / 1e6).toFixed(1)} MB`;
    const rate = `${(bytesPerSecond / 1e9).toFixed(1)} GB/s`;
    const figures = `${Math.floor(share * 100)}% of ${size}, ${rate}`;
    if (tensors < totalTensors) line.draw(`loading weights ${bar(share)} ${figures}`);
    else line.clear();
  };
}

/** Returns a callback that draws the progress of a download. */
export function pullProgressBar(terminal: NodeJS.WriteStream): (progress: PullProgress) => void {
  const line = new StatusLine(terminal);
  const start = performance.now();
  return ({ bytes, totalBytes, files, totalFiles }) => {
    if (files === totalFiles) {
      line.clear();
      return;
    }
    const share = totalBytes > 0 ? bytes / totalBytes : 1;
    const seconds = (performance.now() - start) / 1000;
    const rate = `${(bytes / 1e6 / Math.max(seconds, 0.001)).toFixed(1)} MB/s`;
    const figures = `${Math.floor(share * 100)}% of ${(totalBytes / 1e9).toFixed(2)} GB, ${rate}`;
    line.draw(`downloading ${bar(share)} ${figures}, ${files}/${totalFiles} files`);
  };
}

/**
 * Draws a call's finished prompts and its mean rates in tokens per second until the returned function
 * is called.
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
  // The call itself keeps the process alive.
  timer.unref();
  return () => {
    clearInterval(timer);
    line.clear();
  };
}
