/** The page at `/`, in headless Chromium; that part is skipped without the program. */
import { createHandler } from '../../lib';
import { Chromium, hasChromium } from '../support/chromium';
import { type RunningServer, startServer } from '../support/server';

let running: RunningServer;
beforeAll(async () => {
  running = await startServer({}, { ui: true, apiKeys: ['secret'] });
});
afterAll(() => running.close());

test('is one file whose policy allows its own script and requests alone', async () => {
  const response = await fetch(running.url);
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toBe('text/html; charset=utf-8');
  const policy = response.headers.get('content-security-policy') ?? '';
  expect(policy).toMatch(/^default-src 'none'; script-src 'sha256-\S{44}'; style-src 'sha256-/);
  expect(policy).not.toMatch(/unsafe|https?:|\*/);
  expect(await response.text()).not.toMatch(/https?:\/\/|\bsrc=|@import/);
});

test('is not there by default', async () => {
  const response = await createHandler(running.llm)(new Request('http://localhost/'));
  expect(response.status).toBe(404);
});

(hasChromium ? test : test.skip)('chats with a key, stops, and shows the engine', async () => {
  const page = await Chromium.open(running.url);
  const submit = (text: string) =>
    page.evaluate(
      `byId = (id) => document.getElementById(id); byId('text').value = ${JSON.stringify(text)};` +
        `byId('form').requestSubmit()`,
    );
  const last = `document.querySelector('#messages > :last-child')`;
  try {
    await page.until(`document.getElementById('running')?.textContent === '0'`);
    await submit('Tell me a story');
    await page.until(`${last}?.className === 'message error'`);
    expect(await page.evaluate(`${last}.textContent`)).toBe('Unauthorized');
    await page.evaluate(
      `byId('key').value = 'secret'; byId('key').dispatchEvent(new Event('change'))`,
    );
    await page.until(`byId('model').value === 'stories'`);
    await submit('Tell me a story <b>');
    await page.until(
      `${last}.className === 'message assistant' && ${last}.textContent.length > 20`,
    );
    await page.until(`byId('send').textContent === 'Send'`);
    // The model's and the user's text are no markup.
    expect(await page.evaluate(`document.querySelectorAll('#messages *').length`)).toBe(4);
    await page.until(`/^\\d+ ms$/.test(byId('first').textContent)`);
    await page.until(`/^[\\d.]+ %$/.test(byId('cache').textContent)`);
    await submit('And another one');
    await page.until(`byId('send').textContent === 'Stop'`);
    await page.evaluate(`byId('form').requestSubmit()`);
    await page.until(`byId('send').textContent === 'Send'`);
    await submit('One more');
    await page.until(`byId('send').textContent === 'Stop' && ${last}.textContent.length > 20`);
    await page.evaluate(`byId('reset').click()`);
    expect(await page.evaluate(`byId('messages').childElementCount`)).toBe(0);
    // The answer that the reset ended is no part of the next chat.
    await page.until(`byId('send').textContent === 'Send'`);
    await submit('A new chat');
    await page.until(`${last}?.className === 'message assistant'`);
    const bodies = page.events
      .filter(({ method }) => method === 'Network.requestWillBeSent')
      .flatMap(({ params }) => (params.request as { postData?: string }).postData ?? []);
    const { messages } = JSON.parse(bodies[bodies.length - 1]) as { messages: object[] };
    expect(messages).toEqual([{ role: 'user', content: 'A new chat' }]);

    const urls = page.events
      .filter(({ method }) => method === 'Network.requestWillBeSent')
      .map(({ params }) => (params.request as { url: string }).url);
    expect(urls.length).toBeGreaterThan(4);
    for (const url of urls) expect(url).toMatch(new RegExp(`^(${running.url}|data:)`));
    const logged = page.events
      .filter(({ method }) => method === 'Log.entryAdded')
      .map(({ params }) => params.entry as { level: string; text: string })
      .filter(({ level }) => level === 'error');
    // Of the requests without a key.
    for (const { text } of logged) expect(text).toContain('401');
    expect(page.events.map(({ method }) => method)).not.toContain('Runtime.exceptionThrown');
  } finally {
    await page.close();
  }
});
