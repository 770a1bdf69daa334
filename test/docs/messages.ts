/** The messages that the sources can say, with … for what is put in. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';

const ROOT = path.resolve(__dirname, '..', '..');

function filesBelow(folder: string, extension: RegExp): string[] {
  return readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => extension.test(file))
    .map((file) => path.join(ROOT, folder, file));
}

/** A string of TypeScript: literals, templates and sums of them. */
function textOf(node: ts.Expression): string {
  if (ts.isStringLiteralLike(node)) return node.text;
  if (ts.isTemplateExpression(node)) {
    return node.head.text + node.templateSpans.map(({ literal }) => `…${literal.text}`).join('');
  }
  if (ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.PlusToken) {
    return textOf(node.left) + textOf(node.right);
  }
  return '…';
}

function messagesOfTypeScript(file: string): string[] {
  const text = readFileSync(file, 'utf8');
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isExpression(node)) {
      const message = textOf(node);
      if (message !== '…') found.push(message);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** Literals of C++ one after the other are one; what stands between two and is added to both is put in. */
function messagesOfCpp(file: string): string[] {
  const text = readFileSync(file, 'utf8').replace(/\/\/[^\n]*/g, '');
  const literals = [...text.matchAll(/"((?:[^"\\\n]|\\.)*)"/g)];
  const messages: string[] = [];
  let message = '';
  literals.forEach((literal, i) => {
    const next = literals.at(i + 1);
    message += literal[1].replaceAll('\\"', '"');
    const between = next && text.slice(literal.index + literal[0].length, next.index);
    if (between?.trim() === '') return;
    const isSum = between !== undefined && !between.includes(';') && /^\s*\+/.test(between);
    if (isSum) message += '…';
    if (!isSum || !/\+\s*$/.test(between)) {
      // What follows is put in, if anything does.
      messages.push(
        /^\s*\+/.test(text.slice(literal.index + literal[0].length)) ? `${message}…` : message,
      );
      message = '';
    }
  });
  return messages;
}

export function sourceMessages(): string[] {
  const all = [
    ...filesBelow('lib', /\.ts$/).flatMap(messagesOfTypeScript),
    ...filesBelow('native', /\.(cpp|h|cu|cuh)$/).flatMap(messagesOfCpp),
  ];
  return [...new Set(all.map((message) => message.replace(/…+/g, '…')))];
}
