/**
 * Preloaded into each rank by the launcher: ends the rank when the launcher exits for any reason.
 * The launcher holds the other end of the pipe, which closes with it.
 */
import { Socket } from 'node:net';
import { startTimer } from '../timer';

/** Milliseconds between SIGTERM and SIGKILL. */
const GRACE_PERIOD = 5000;

const fd = Number(process.env.UNIPROC_LAUNCHER_FD);
// Child processes do not inherit the pipe.
delete process.env.UNIPROC_LAUNCHER_FD;

if (fd > 2) {
  const launcher = new Socket({ fd, readable: true, writable: false });
  launcher.on('error', () => {});
  launcher.on('close', () => {
    startTimer(GRACE_PERIOD, () => process.kill(process.pid, 'SIGKILL'), { ref: false });
    process.kill(process.pid, 'SIGTERM');
  });
  launcher.resume();
  launcher.unref();
}
