// The client of bench/server.js, in a process of its own. Reads { url, requests, atOnce } from stdin, posts
// the requests as `vllm bench serve` does, all at once or one after another, and prints { seconds, results
// }, a result being { firstTokenMs, numTokens }.
'use strict';

const http = require('node:http');

/** A completion, streamed; its time to the first token and its tokens by the usage of its last chunk. */
function complete(url, body) {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const headers = { 'content-type': 'application/json' };
    const request = http.request(url, { method: 'POST', headers }, (response) => {
      let firstTokenMs = null;
      let numTokens = null;
      let rest = '';
      response.setEncoding('utf8').on('data', (data) => {
        const lines = (rest + data).split('\n');
        rest = lines.pop();
        for (const line of lines) {
          if (!line.startsWith('data: {')) continue;
          const { choices, usage } = JSON.parse(line.slice(6));
          if (choices?.length > 0) firstTokenMs ??= performance.now() - start;
          if (usage) numTokens = usage.completion_tokens;
        }
      });
      response.on('end', () => {
        if (response.statusCode === 200) resolve({ firstTokenMs, numTokens });
        else reject(new Error(`status ${response.statusCode}`));
      });
    });
    request.on('error', reject);
    request.end(JSON.stringify(body));
  });
}

async function main() {
  let text = '';
  for await (const data of process.stdin) text += data;
  const { url, requests, atOnce } = JSON.parse(text);
  const start = performance.now();
  const results = [];
  if (atOnce) results.push(...(await Promise.all(requests.map((body) => complete(url, body)))));
  else for (const body of requests) results.push(await complete(url, body));
  console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000, results }));
}

main();
