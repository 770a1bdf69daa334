/**
 * A jest reporter: one line for each test as it ends, with its seconds, and what was wrong with it.
 * A run that is cut short has said so far what it found.
 */
'use strict';

const MAX_FAILURE_LINES = 40;

class LineReporter {
  onTestCaseResult(_test, { status, duration, ancestorTitles, title, failureMessages }) {
    if (status === 'pending' || status === 'todo') return;
    const seconds = ((duration ?? 0) / 1000).toFixed(1).padStart(6);
    console.log(`${status.padEnd(6)} ${seconds} s  ${[...ancestorTitles, title].join(' > ')}`);
    for (const message of failureMessages) {
      // Without the colours, and the frames of jest's own.
      // eslint-disable-next-line no-control-regex
      const text = message.replace(/\u001b\[\d+m/g, '');
      const lines = text.split('\n').filter((line) => !line.includes('node_modules'));
      for (const line of lines.slice(0, MAX_FAILURE_LINES)) console.log(`       | ${line}`);
    }
  }

  /** A file that could not be run at all has no test to say so. */
  onTestFileResult(_test, { testExecError, failureMessage, testFilePath, testResults }) {
    if (!testExecError && testResults.length > 0) return;
    console.log(`failed      0.0 s  ${testFilePath}\n       | ${failureMessage}`);
  }
}

module.exports = LineReporter;
