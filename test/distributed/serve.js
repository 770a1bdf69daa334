// A store server in a process of its own, for hostile.test.ts: prints its port and, for each input
// line, its usage and peak memory.
'use strict';

require('../executor/requireTypescript');
const { TCPStoreServer } = require('../../lib/distributed/tcpStoreServer');

void TCPStoreServer.listen({ host: '127.0.0.1', port: 0 }).then((server) => {
  console.log(server.port);
  process.stdin.on('data', () => {
    const peakBytes = process.resourceUsage().maxRSS * 1024;
    console.log(JSON.stringify({ ...server.usage(), peakBytes }));
  });
  process.stdin.on('end', () => server.close());
});
