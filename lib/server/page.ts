/** The page at `/`: a chat and the engine's state, in one file without external requests. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import path from 'node:path';

const FILE = path.resolve(__dirname, '..', '..', 'ui', 'index.html');

interface Page {
  html: string;
  headers: Readonly<Record<string, string>>;
}

let page: Promise<Page> | undefined;

/** The page, which is read once. */
export async function pageResponse(): Promise<Response> {
  page ??= readPage();
  const { html, headers } = await page;
  return new Response(html, { headers });
}

async function readPage(): Promise<Page> {
  const html = await readFile(FILE, 'utf8');
  const policy = [
    "default-src 'none'",
    `script-src ${hashOf(html, 'script')}`,
    `style-src ${hashOf(html, 'style')}`,
    'img-src data:',
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ];
  return {
    html,
    headers: {
      'content-type': 'text/html; charset=utf-8',
      'content-security-policy': policy.join('; '),
      'x-content-type-options': 'nosniff',
      'referrer-policy': 'no-referrer',
      'cache-control': 'no-cache',
    },
  };
}

/** The only script or style that the policy allows, by its hash. */
function hashOf(html: string, element: 'script' | 'style'): string {
  const [, text = ''] = new RegExp(`<${element}[^>]*>(.*?)</${element}>`, 's').exec(html) ?? [];
  return `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
}
