import { readFileSync } from 'node:fs';
import path from 'node:path';
import { ROOT, runNode } from '../executor/support';

test('the example in docs/tokenizers.md runs', async () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'tokenizers.md'), 'utf8');
  const [example, ...others] = [...page.matchAll(/^```js\n(.*?)^```/gms)].map(([, code]) => code);
  expect(others).toEqual([]);
  const checkpoint = JSON.stringify(path.join(ROOT, 'models', 'stories'));
  const program = `
    (async () => {
      ${example.replace("'path/to/checkpoint'", checkpoint)}
      console.log(JSON.stringify({ text, bos: tokenizer.bosTokenId, first: ids[0] }));
    })();
  `;
  const { code, stdout, stderr } = await runNode(program);
  expect(stderr).toBe('');
  expect(code).toBe(0);
  const { text, bos, first } = JSON.parse(stdout) as Record<string, unknown>;
  expect(text).toBe('The tide came in.');
  expect(first).toBe(bos);
});

test('the commands in docs/tokenizers.md are scripts of the package', () => {
  const page = readFileSync(path.join(ROOT, 'docs', 'tokenizers.md'), 'utf8');
  const { scripts } = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  for (const [, script] of page.matchAll(/^npm run ([\w-]+)/gm))
    expect(scripts).toHaveProperty(script);
});
