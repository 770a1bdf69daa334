/** datetime.strftime in the C locale, as glibc writes it. */

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];
const DAY = 24 * 60 * 60 * 1000;

const startOfDay = (year: number, month: number, day: number) => Date.UTC(year, month, day) / DAY;

/** ISO 8601 year and week: the year is that of the week's Thursday. */
function isoWeek(day: number): { year: number; week: number } {
  const weekday = (day + 3) % 7;
  const thursday = day - weekday + 3;
  const year = new Date(thursday * DAY).getUTCFullYear();
  return { year, week: Math.floor((thursday - startOfDay(year, 0, 1)) / 7) + 1 };
}

/** A field: value, width and fill character. */
type Field = readonly [value: number, width: number, fill?: string];

function fieldOf(date: Date, code: string): Field | string | undefined {
  const [year, month, monthDay] = [date.getFullYear(), date.getMonth(), date.getDate()];
  const day = startOfDay(year, month, monthDay);
  const yearDay = day - startOfDay(year, 0, 1);
  const weekday = date.getDay();
  const hour12 = date.getHours() % 12 || 12;
  const whole = (format: string) => strftime(date, format);
  switch (code) {
    case 'a':
      return DAYS[weekday].slice(0, 3);
    case 'A':
      return DAYS[weekday];
    case 'b':
    case 'h':
      return MONTHS[month].slice(0, 3);
    case 'B':
      return MONTHS[month];
    case 'c':
      return whole('%a %b %e %H:%M:%S %Y');
    case 'C':
      return [Math.floor(year / 100), 2];
    case 'd':
      return [monthDay, 2];
    case 'D':
    case 'x':
      return whole('%m/%d/%y');
    case 'e':
      return [monthDay, 2, ' '];
    case 'f':
      return [date.getMilliseconds() * 1000, 6];
    case 'F':
      return whole('%Y-%m-%d');
    case 'g':
      return [isoWeek(day).year % 100, 2];
    case 'G':
      return [isoWeek(day).year, 4];
    case 'H':
      return [date.getHours(), 2];
    case 'I':
      return [hour12, 2];
    case 'j':
      return [yearDay + 1, 3];
    case 'k':
      return [date.getHours(), 2, ' '];
    case 'l':
      return [hour12, 2, ' '];
    case 'm':
      return [month + 1, 2];
    case 'M':
      return [date.getMinutes(), 2];
    case 'n':
      return '\n';
    case 'p':
      return date.getHours() < 12 ? 'AM' : 'PM';
    case 'P':
      return date.getHours() < 12 ? 'am' : 'pm';
    case 'r':
      return whole('%I:%M:%S %p');
    case 'R':
      return whole('%H:%M');
    case 's':
      return String(Math.floor(date.getTime() / 1000));
    case 'S':
      return [date.getSeconds(), 2];
    case 't':
      return '\t';
    case 'T':
    case 'X':
      return whole('%H:%M:%S');
    case 'u':
      return [weekday || 7, 1];
    case 'U':
      return [Math.floor((yearDay + 7 - weekday) / 7), 2];
    case 'V':
      return [isoWeek(day).week, 2];
    case 'w':
      return [weekday, 1];
    case 'W':
      return [Math.floor((yearDay + 7 - ((weekday + 6) % 7)) / 7), 2];
    case 'y':
      return [year % 100, 2];
    case 'Y':
      return [year, 1];
    // No time zone, as in Python's datetime.now().
    case 'z':
    case 'Z':
      return '';
    case '%':
      return '%';
  }
  return undefined;
}

/** With glibc's flags: no padding, spaces, zeros, upper case. */
export function strftime(date: Date, format: string): string {
  return format.replace(
    /%([-_0^#]?)(\d*)([a-zA-Z%])/g,
    (all, flag: string, width: string, code: string) => {
      const field = fieldOf(date, code);
      if (field === undefined) return all;
      if (typeof field === 'string') {
        const text = flag === '^' || flag === '#' ? field.toUpperCase() : field;
        return text.padStart(Number(width), flag === '0' ? '0' : ' ');
      }
      const [value, digits, fill = '0'] = field;
      if (flag === '-') return String(value);
      const filling = flag === '_' ? ' ' : flag === '0' ? '0' : fill;
      return String(value).padStart(Math.min(Number(width) || digits, 1000), filling);
    },
  );
}
