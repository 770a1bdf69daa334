/** Host address and free port of this process. */
import { createServer, type AddressInfo } from 'node:net';
import { networkInterfaces } from 'node:os';

/** This machine's external address: IPv4 before IPv6, 127.0.0.1 if none. */
export function hostIp(): string {
  const addresses = Object.values(networkInterfaces())
    .flatMap((all) => all ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith('fe80:'));
  const found = addresses.find(({ family }) => family === 'IPv4') ?? addresses.at(0);
  if (found === undefined) return '127.0.0.1';
  return found.family === 'IPv4' ? found.address : `[${found.address}]`;
}

/** A TCP port that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}
