/** What the error of a call whose signal was aborted for `reason` matches. */
export const abortedBy = (reason: unknown) => ({
  name: 'AbortError',
  code: 'ABORT_ERR',
  cause: reason,
});
