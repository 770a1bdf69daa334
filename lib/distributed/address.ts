/** A host and a port as one writes them: `host:port`, an IPv6 host in brackets. */
export function addressOf(host: string, port: number): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}
