/**
 * Required by each rank of the launcher before its program: when the launcher is gone, however it
 * ended, the rank is too. The other end of this pipe is the launcher's, and ends with it.
 */
import { Socket } from 'node:net';
import { startTimer } from '../timer';

/** Milliseconds between the request to end, and the end. */
const GRACE_PERIOD = 5000;

const fd = Number(process.env.UNIPROC_LAUNCHER_FD);
// What the rank starts does not have the pipe.
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
