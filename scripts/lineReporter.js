/**
 * A jest reporter: one line per finished test with its seconds and failure, so that an interrupted run
 * has results.
 */
'use strict';

const MAX_FAILURE_LINES = 40;

class LineReporter {
  onTestCaseResult(_test, { status, duration, ancestorTitles, title, failureMessages }) {
    if (status === 'pending' || status === 'todo') return;
    const seconds = ((duration ?? 0) / 1000).toFixed(1).padStart(6);
    console.log(`${status.padEnd(6)} ${seconds} s  ${[...ancestorTitles, title].join(' > ')}`);
    for (const message of failureMessages) {
      // Strip colours and jest's stack frames.
      // eslint-disable-next-line no-control-regex
      const text = message.replace(/\u001b\[\d+m/g, '');
      const lines = text.split('\n').filter((line) => !line.includes('node_modules'));
      for (const line of lines.slice(0, MAX_FAILURE_LINES)) console.log(`       | ${line}`);
    }
  }

  /** Reports a file that could not run and so has no test results. */
  onTestFileResult(_test, { testExecError, failureMessage, testFilePath, testResults }) {
    if (!testExecError && testResults.length > 0) return;
    console.log(`failed      0.0 s  ${testFilePath}\n       | ${failureMessage}`);
  }
}

module.exports = LineReporter;
