/** Errors of compiling and rendering a template. */

/** Python exceptions of a rendering; `TemplateError` is raised by raise_exception. */
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

/** The template does not compile, as in jinja2. */
export class TemplateSyntaxError extends Error {
  constructor(
    readonly reason: string,
    /** Line in the template, from 1. */
    readonly line: number,
  ) {
    super(`line ${line}: ${reason}`);
    this.name = 'TemplateSyntaxError';
  }
}

/** Rendering raised an exception. */
export class TemplateRuntimeError extends Error {
  /** Line of the innermost statement or output that raised it, from 1; null if unknown. */
  line: number | null = null;

  constructor(
    readonly kind: PythonErrorKind,
    /** Python's message. */
    readonly reason: string,
  ) {
    super(`${kind}: ${reason}`);
    this.name = 'TemplateRuntimeError';
  }
}

export function raise(kind: PythonErrorKind, reason: string): never {
  throw new TemplateRuntimeError(kind, reason);
}
