/** What goes wrong in a template: in its text, or while it runs. */

/** The Python exceptions that a running template raises; `TemplateError` is its own raise_exception. */
export type PythonErrorKind =
  | 'AssertionError'
  | 'AttributeError'
  | 'FilterArgumentError'
  | 'IndexError'
  | 'KeyError'
  | 'MemoryError'
  | 'OverflowError'
  | 'RecursionError'
  | 'RuntimeError'
  | 'SecurityError'
  | 'TemplateError'
  | 'TemplateRuntimeError'
  | 'TypeError'
  | 'UndefinedError'
  | 'ValueError'
  | 'ZeroDivisionError';

/** The text is no template: jinja2 would not compile it either. */
export class TemplateSyntaxError extends Error {
  constructor(
    readonly reason: string,
    /** The line of the template, from 1. */
    readonly line: number,
  ) {
    super(`line ${line}: ${reason}`);
    this.name = 'TemplateSyntaxError';
  }
}

/** The running template raised an exception. */
export class TemplateRuntimeError extends Error {
  /** The line of the innermost statement or output that was running, from 1; null when not known. */
  line: number | null = null;

  constructor(
    readonly kind: PythonErrorKind,
    /** What Python says. */
    readonly reason: string,
  ) {
    super(`${kind}: ${reason}`);
    this.name = 'TemplateRuntimeError';
  }
}

export function raise(kind: PythonErrorKind, reason: string): never {
  throw new TemplateRuntimeError(kind, reason);
}
