/** The base class of all errors, in a file of its own so that each file of errors can import it. */

/**
 * Base class of this library's errors. Each has a stable `code`; the message says what was wrong, with
 * which value, in which file or request, and what to do.
 */
export class UniprocError extends Error {
  constructor(
    /** Stable across releases; match on this rather than on the message. */
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}
