// Rows { bench, what, value, unit, bound? } as an aligned table.
'use strict';

/** Three significant digits, never in exponents. */
function figure(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(3);
}

function printTable(rows) {
  const cells = rows.map(({ bench, what, value, unit, bound }) => [
    bench,
    what,
    `${figure(value)} ${unit}`,
    bound === undefined ? '' : `${value <= bound ? 'within' : 'ABOVE'} ${bound} ${unit}`,
  ]);
  const widths = cells[0].map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  for (const row of cells) {
    const aligned = row.map((cell, i) =>
      i === 2 ? cell.padStart(widths[i]) : cell.padEnd(widths[i]),
    );
    console.log(aligned.join('   ').trimEnd());
  }
}

module.exports = { printTable };
