// Rows { bench, what, value, unit, bound? or ceiling? } as an aligned table.
'use strict';

/** Three significant digits, never in exponents. */
function figure(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toPrecision(3);
}

/** How a figure stands to the most it may be, or to the most it can be. */
function remark({ value, unit, bound, ceiling }) {
  if (bound !== undefined) return `${value <= bound ? 'within' : 'ABOVE'} ${bound} ${unit}`;
  if (ceiling === undefined) return '';
  return `${(value / ceiling).toFixed(2)} of the products alone, ${figure(ceiling)} ${unit}`;
}

function printTable(rows) {
  const cells = rows.map((row) => [
    row.bench,
    row.what,
    `${figure(row.value)} ${row.unit}`,
    remark(row),
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
