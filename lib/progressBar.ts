/** How far the load of the weights is, as one line of a terminal. */
import type { LoadProgress } from './config/uniprocConfig';

const WIDTH = 30;

/** A progress callback that draws on `terminal` and wipes its line when all is loaded. */
export function progressBar(terminal: NodeJS.WriteStream): (progress: LoadProgress) => void {
  let drawn = '';
  return ({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond }) => {
    const share = totalBytes > 0 ? bytes / totalBytes : 1;
    const bar = '='.repeat(Math.round(share * WIDTH)).padEnd(WIDTH);
    const size = `${(totalBytes / 1e6).toFixed(1)} MB`;
    const rate = `${(bytesPerSecond / 1e9).toFixed(1)} GB/s`;
    const figures = `${Math.floor(share * 100)}% of ${size}, ${rate}`;
    const line = tensors < totalTensors ? `loading weights [${bar}] ${figures}` : '';
    if (line === drawn) return;
    drawn = line;
    terminal.write(`\r\x1b[K${line}`);
  };
}
