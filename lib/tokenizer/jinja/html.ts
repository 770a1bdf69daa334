/** HTML escaping as in markupsafe. */
import { SPACES } from './text';
import { Markup, type Value } from './values';
import { str } from './repr';

const ESCAPES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '>': '&gt;',
  '<': '&lt;',
  "'": '&#39;',
  '"': '&#34;',
};

/** `escape(value)`: safe strings stay unchanged. */
export function escapeHtml(value: Value): Markup {
  if (value instanceof Markup) return value;
  return new Markup(str(value).replace(/[&><'"]/g, (char) => ESCAPES[char]));
}

const NAMED: Readonly<Record<string, string>> = {
  amp: '&',
  apos: "'",
  gt: '>',
  lt: '<',
  nbsp: '\xa0',
  quot: '"',
};

/** `Markup(text).striptags()`: removes comments and tags, collapses white space. */
export function stripTags(text: string): string {
  return text
    .replace(/<!--.*?-->/gs, '')
    .replace(/<[^>]*>/g, '')
    .split(new RegExp(`[${SPACES}]+`))
    .filter((word) => word !== '')
    .join(' ')
    .replace(/&(#\d+|#[xX][\da-fA-F]+|\w+);/g, (all, name: string) => {
      if (!name.startsWith('#')) return NAMED[name] ?? all;
      const code = Number(/^#x/i.test(name) ? `0x${name.slice(2)}` : name.slice(1));
      return code > 0 && code < 0x110000 ? String.fromCodePoint(code) : '\ufffd';
    });
}
