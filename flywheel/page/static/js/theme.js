/* Before anything is painted: the theme that was chosen here, or else the system's. */
(() => {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("flywheel-theme"); } catch { return null; } };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() || (system.matches ? "dark" : "light");
    window.dispatchEvent(new Event("theme"));
  };
  window.flywheelTheme = {
    now: () => document.documentElement.dataset.theme,
    toggle() {
      try { localStorage.setItem("flywheel-theme", this.now() === "dark" ? "light" : "dark"); } catch { /* not kept */ }
      apply();
    },
  };
  system.addEventListener("change", apply);
  apply();
})();
