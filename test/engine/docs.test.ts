import { readFileSync } from 'node:fs';
import path from 'node:path';
import { ROOT, runNode } from '../executor/support';

test('the example of docs/engine.md runs', async () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'engine.md'), 'utf8');
  const examples = [...page.matchAll(/^```js\n(.*?)^```/gms)].map(([, code]) => code);
  expect(examples).toHaveLength(1);
  const { code, stdout, stderr } = await runNode(examples[0]);
  expect(code).toBe(0);
  const request = JSON.parse(stderr) as { numOutputTokens: number; finishReason: string };
  expect(request.finishReason).toMatch(/^(stop|length)$/);
  expect(stdout).toMatch(/\w+ \w+/);
  expect(stdout.split('\n').at(-2)).toBe(`${request.numOutputTokens} tokens, 1 first ones`);
});
