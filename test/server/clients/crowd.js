// A crowd of clients of the server at argv[2], in a process of its own: for each message
// { numStreams, maxTokens, numHostile }, reads streams to their end beside clients that vanish, do not read,
// and send malformed, oversized or flooding requests; then reports.
'use strict';

const { Agent, request } = require('node:http');
const { connect } = require('node:net');

const url = new URL(process.argv[2]);
const agent = new Agent({ keepAlive: false });

function post(body, onResponse) {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      new URL('/v1/completions', url),
      { method: 'POST', agent, headers: { 'content-type': 'application/json' } },
      (response) => onResponse(response, outgoing, resolve),
    );
    outgoing.on('error', reject);
    outgoing.end(typeof body === 'string' ? body : JSON.stringify(body));
  });
}

const streamed = (maxTokens) => ({
  prompt: 'Once upon a time',
  max_tokens: maxTokens,
  ignore_eos: true,
  stream: true,
  stream_options: { include_usage: true },
  return_token_ids: true,
});

/** Tokens of a whole stream; null if it is not well-formed. */
function readToEnd(maxTokens) {
  return post(streamed(maxTokens), (response, _, resolve) => {
    let text = '';
    response.on('data', (data) => (text += data));
    response.on('close', () => {
      const events = text.split('\n\n').filter((each) => each.startsWith('data: '));
      if (events.pop() !== 'data: [DONE]') return resolve(null);
      const chunks = events.map((event) => JSON.parse(event.slice('data: '.length)));
      const { usage } = chunks.pop();
      const numTokens = chunks.reduce((sum, { choices }) => sum + choices[0].token_ids.length, 0);
      resolve(usage.completion_tokens === numTokens ? numTokens : null);
    });
  });
}

/** Leaves after the first bytes. */
const vanish = () =>
  post(streamed(200), (response, outgoing, resolve) => {
    response.once('data', () => {
      outgoing.destroy();
      resolve();
    });
  }).catch(() => {});

/** Never reads its answer; leaves after `ms`. */
const stare = (ms) =>
  post({ ...streamed(200), logprobs: 20, n: 4 }, (response, outgoing, resolve) => {
    response.pause();
    setTimeout(() => {
      outgoing.destroy();
      resolve();
    }, ms);
  }).catch(() => {});

const statusOf = (body) =>
  post(body, (response, _, resolve) => {
    response.resume();
    resolve(response.statusCode);
  }).catch(() => 413); // cut while it was sending

function flood() {
  return new Promise((resolve) => {
    const socket = connect(Number(url.port), url.hostname);
    socket.on('error', () => {});
    socket.write(`GET /health HTTP/1.1\r\nHost: here\r\n${'X-Flood: 0123456789\r\n'.repeat(2000)}`);
    let text = '';
    socket.on('data', (data) => (text += data));
    socket.on('close', () => resolve(Number(text.split(' ')[1])));
  });
}

process.on('message', async ({ numStreams, maxTokens, numHostile }) => {
  const hostile = Array.from({ length: numHostile }, (_, i) => [vanish(), stare(200 + i)]).flat();
  const numTokens = Promise.all(Array.from({ length: numStreams }, () => readToEnd(maxTokens)));
  const statuses = {
    malformed: await statusOf('{"prompt": '),
    oversized: await statusOf(' '.repeat(2 ** 21)),
    flood: await flood(),
  };
  await Promise.all(hostile);
  process.send({ numTokens: await numTokens, statuses });
});
process.send('ready');
