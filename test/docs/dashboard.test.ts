/** examples/grafana-dashboard.json queries what the server exports. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createHandler } from '../../lib';
import { loadStories } from '../support/server';

const FILE = path.join(__dirname, '..', '..', 'examples', 'grafana-dashboard.json');

interface Dashboard {
  panels: { title: string; targets: { expr: string }[] }[];
  templating: { list: { query: string }[] };
}

test('every metric and label of the dashboard is exported', async () => {
  const dashboard = JSON.parse(readFileSync(FILE, 'utf8')) as Dashboard;
  const queries = [
    ...dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)),
    ...dashboard.templating.list.map(({ query }) => query),
  ];
  const llm = await loadStories();
  const handler = createHandler(llm);
  await llm.generate('Once upon a time', { maxTokens: 4 });
  const text = await (await handler(new Request('http://localhost/metrics'))).text();
  await llm.shutdown();
  const lines = text.split('\n').filter((line) => line.startsWith('vllm:'));
  const exported = new Map(lines.map((line) => [line.slice(0, line.indexOf('{')), line]));
  const queried = queries.flatMap((query) =>
    Array.from(query.matchAll(/(vllm:\w+)(?:\{(\w+))?/g), ([, name, label]) => ({ name, label })),
  );
  expect(queried.length).toBeGreaterThan(queries.length - 2);
  for (const { name, label = 'model_name' } of queried) {
    expect([...exported.keys()]).toContain(name);
    expect(exported.get(name)).toContain(`${label}="`);
  }
  const grouped = queries.flatMap((query) =>
    Array.from(query.matchAll(/by \((\w+)\).*?(vllm:\w+)/g), ([, label, name]) => ({
      label,
      name,
    })),
  );
  for (const { label, name } of grouped) expect(exported.get(name)).toContain(`${label}="`);
});
